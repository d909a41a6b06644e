"""The job `export` from a run's folder to the target: asked in a fresh process, refused by a number, whole or not there."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from qlora_studio.core import events as ev
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.example import Example
from qlora_studio.core.jobs import ExportRequest, TrainRequest
from qlora_studio.engine.four_bit_rows import FourBitRows
from qlora_studio.engine.manifest import write_folder
from qlora_studio.home import Home
from qlora_studio.runs.folder import JobFolder, create_job, write_json
from qlora_studio.worker import export as job
from qlora_studio.worker.context import Context
from tests.engine.gguf_file.small_models import small_adapter, small_base


@dataclass
class Place:
    """A home with a finished run on a small base."""

    root: Path
    base: Path
    run: JobFolder
    events: list[Any] = field(default_factory=list)

    @property
    def out(self) -> Path:
        return self.root / "target" / "out"

    def context(self, **options: Any) -> Context:
        request = ExportRequest(run=self.run.path, to=self.out, merge_into="as_chatted", **options)
        folder = create_job(self.run.path / "exports", "export", request)
        return Context(folder, self.events.append, os.getppid(), home=Home(self.root / "home"))

    def left(self) -> list[str]:
        """What lies where the export was to be."""
        return sorted(path.name for path in self.out.parent.iterdir()) if self.out.parent.exists() else []


@pytest.fixture
def place(tmp_path, monkeypatch) -> Place:
    monkeypatch.setenv("QLORA_STUDIO_HOME", str(tmp_path / "home"))
    base = small_base("llama", tmp_path / "base", num_hidden_layers=2)
    (base / "LICENSE").write_text("the licence")
    config = TrainConfig().replace({"model.base": str(base), "model.compute_dtype": "fp32"})
    run = create_job(tmp_path / "home" / "runs", "pip", TrainRequest(), {"config.json": config.model_dump(mode="json")})
    (run.path / "events.jsonl").write_text(json.dumps({"time": 1.0, "event": "finished"}) + "\n")

    def fill(folder: Path) -> None:
        small_adapter(base, folder)
        (folder / "README.md").unlink()
        values = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": "base"}
        (folder / "adapter_config.json").write_text(json.dumps(values))

    write_folder(run.adapter, fill)
    return Place(tmp_path, base, run)


@pytest.mark.slow
def test_a_pack_is_asked_in_a_fresh_process_and_names_no_place(place):
    last = job.run(place.context(kind="pack", parts=("adapter", "merged", "gguf"), gguf="F16", prompts=("Hi",)))
    assert isinstance(last, ev.Finished) and place.left() == ["out"]
    names = sorted(path.name for path in place.out.iterdir())
    assert names == ["LICENSE", "Modelfile", "README.md", "adapter", "merged", "pip.F16.gguf"]
    checks = [event for event in place.events if isinstance(event, ev.Checked)]
    assert [check.what for check in checks] == ["merged model, as chatted", "F16, as chatted"]
    assert all(check.kl < 1e-3 and check.as_chatted for check in checks)
    assert "Its text is in LICENSE." in (place.out / "README.md").read_text()
    for path in place.out.rglob("*"):
        assert path.is_dir() or str(place.root).encode() not in path.read_bytes(), path.name
    assert not (place.run.path / "exports" / "export" / job.RECORD).exists()


@pytest.mark.slow
def test_an_export_that_is_not_what_was_chatted_with_fails_and_leaves_nothing(place, monkeypatch):
    right = FourBitRows.rows
    monkeypatch.setattr(FourBitRows, "rows", lambda weight, first, after: right(weight, first, after) * 0.7)
    with pytest.raises(StudioError, match="does not answer as the chat did: KL"):
        job.run(place.context(kind="merged", prompts=("Hi",)))
    assert place.left() == []


def test_a_lora_file_comes_with_a_card_and_the_licence(place):
    assert isinstance(job.run(place.context(kind="gguf-lora", prompts=("Hi",))), ev.Finished)
    assert sorted(path.name for path in place.out.iterdir()) == ["LICENSE", "README.md", "pip.lora.gguf"]
    card = (place.out / "README.md").read_text()
    assert 'llama-cli -m BASE.gguf --lora "./pip.lora.gguf"' in card and "base_model_relation: adapter" in card


@pytest.mark.slow
def test_an_importance_matrix_is_measured_on_training_rows_and_left_nowhere(place, monkeypatch):
    rows = [Example(tuple(range(3, 40)), ((1, 37),))] * 2
    monkeypatch.setattr(job, "tokenise", lambda *_: SimpleNamespace(train=SimpleNamespace(examples=rows)))
    config = json.loads((place.run.path / "config.json").read_text())
    config["data"]["sources"] = [{"name": "mine"}]
    write_json(place.run.path / "config.json", config)
    last = job.run(place.context(kind="gguf", gguf="Q6_K", prompts=("Hi",), importance=True, held_out=False))
    assert isinstance(last, ev.Finished)
    (check,) = [event for event in place.events if isinstance(event, ev.Checked)]
    assert check.layers_off == 0 and check.layers > 0
    reader = gguf.GGUFReader(place.out / "pip.Q6_K.gguf")
    assert reader.fields["quantize.imatrix.entries_count"].contents() == 14
    assert not (place.run.path / "exports" / "export" / job.IMPORTANCE).exists()
    assert next(event.unit for event in place.events if isinstance(event, ev.Advanced)) == "tokens"


def test_a_run_without_rows_of_its_own_has_no_importance_matrix(place):
    with pytest.raises(StudioError, match="no training rows here"):
        job.run(place.context(kind="gguf", gguf="Q6_K", importance=True))
    assert place.left() == []


def test_a_checkpoint_is_exported_in_place_of_the_adapter(place):
    """`best` is the one with the lowest held-out loss; its tensors are what is written."""
    checkpoint = place.run.path / "checkpoints" / "step-000005"
    file = place.run.adapter / "adapter_model.safetensors"
    tensors = {name: value * 2 for name, value in load_file(file).items()}

    def fill(folder: Path) -> None:
        shutil.copytree(place.run.adapter, folder, dirs_exist_ok=True, ignore=lambda *_: ["MANIFEST.json"])
        save_file(tensors, folder / file.name)

    write_folder(checkpoint, fill)
    lines = [{"event": "evaluation", "step": 5, "loss": 1.0, "tokens": 1, "rows": 1}, {"event": "finished"}]
    place.run.events.write_text("".join(json.dumps({"time": 1.0, **line}) + "\n" for line in lines))
    assert isinstance(job.run(place.context(kind="adapter", checkpoint="best")), ev.Finished)
    written = load_file(place.out / file.name)
    assert written.keys() == tensors.keys() and all(torch.equal(written[name], tensors[name]) for name in tensors)


def test_a_stop_while_it_is_written_leaves_nothing(place, monkeypatch):
    context = place.context(kind="merged")
    monkeypatch.setattr(context, "emit", lambda event: setattr(context, "stopped", isinstance(event, ev.Advanced)))
    assert isinstance(job.run(context), ev.Stopped) and place.left() == []


def test_another_base_than_that_of_the_training_is_refused(place):
    write_json(place.run.path / "fingerprint.json", {"identity": {"base": {"model.safetensors": "0" * 64}}})
    with pytest.raises(StudioError, match=r"model\.safetensors has changed"):
        job.run(place.context(kind="gguf"))
    assert place.left() == []


def test_bytes_written_come_with_the_time_that_is_left(place):
    job.run(place.context(kind="merged"))
    steps = [event for event in place.events if isinstance(event, ev.Advanced) and event.unit == "bytes"]
    assert steps[-1].done == steps[-1].total and steps[-1].seconds_left == 0
    assert all(step.seconds_left is not None for step in steps if step.done)
