"""Adapters of several runs become a run of their own, or are refused in words."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from qlora_studio.core import events as ev
from qlora_studio.core.errors import StudioError
from qlora_studio.core.exports import parse_weights
from qlora_studio.core.jobs import CombinePart, CombineReport, CombineRequest, ExportRequest
from qlora_studio.engine.adapter_file import WEIGHTS, AdapterFile
from qlora_studio.engine.checkpoints import ADAPTER_FILES
from qlora_studio.engine.manifest import find_damage, sha256, write_folder
from qlora_studio.home import Home
from qlora_studio.runs import supervisor
from qlora_studio.runs.folder import JobFolder, create_job, read_json, write_json
from qlora_studio.studio import Studio
from qlora_studio.worker import adopt, combine, export
from qlora_studio.worker.context import Context
from tests.engine.gguf_file.small_models import small_adapter, small_base


@pytest.fixture
def studio(home, monkeypatch) -> Studio:
    monkeypatch.setattr(supervisor, "start", lambda job, card=None: None)  # run here, in this process
    return Studio()


def work(studio, job, worker):
    folder = JobFolder(job.folder)
    last = worker.run(Context(folder, lambda event: None, os.getppid(), home=Home(studio.home.root)))
    (folder.path / "events.jsonl").write_text(json.dumps({"time": 1.0, **last.to_json()}) + "\n")
    return folder


@pytest.fixture
def two(studio, tmp_path):
    """Two runs of one base."""
    base = small_base("llama", tmp_path / "base", num_hidden_layers=2)
    for name, rank in (("one", 4), ("two", 2)):
        small_adapter(base, tmp_path / name, r=rank)
        work(studio, studio.runs.adopt(str(tmp_path / name), str(base)), adopt)
    return base


@pytest.mark.slow
def test_it_becomes_a_run_that_is_exported_like_any_other(studio, two, tmp_path):
    job = studio.combinations.start([("one", 0.7), ("two", 0.3)], title="Both of them")
    folder = work(studio, job, combine)
    view = studio.runs.open(job.name)
    assert (view.name, view.state, view.has_adapter, view.config.lora.rank) == ("both-of-them", "finished", True, 6)
    assert find_damage(folder.adapter) == "" and view.config.model.base == str(two)
    made, one = AdapterFile(folder.adapter), AdapterFile(tmp_path / "one")
    assert made.config["r"] == 6 and set(made.pairs) == set(one.pairs)
    assert str(tmp_path) not in (folder.adapter / "adapter_config.json").read_text()
    request = ExportRequest(run=folder.path, to=tmp_path / "out", merge_into="as_chatted", prompts=("Hi",))
    events: list[ev.Event] = []
    job = create_job(folder.path / "exports", "export", request)
    assert isinstance(export.run(Context(job, events.append, os.getppid(), home=Home(studio.home.root))), ev.Finished)
    assert [event.kl < 0.02 for event in events if isinstance(event, ev.Checked)] == [True]


def test_what_does_not_fit_the_base_is_refused_before_it_is_a_run(studio, two, monkeypatch):
    """As if the arithmetic had gone wrong: tensors of another width under the right names."""
    right = combine.combine

    def wrong(*arguments):
        made = right(*arguments)
        made.tensors.update(
            {name: tensor[:, :-1].contiguous() for name, tensor in made.tensors.items() if "lora_A" in name}
        )
        return made

    monkeypatch.setattr(combine, "combine", wrong)
    with pytest.raises(StudioError):
        work(studio, studio.combinations.start([("one", 0.7), ("two", 0.3)]), combine)


def test_one_run_another_base_and_a_base_that_changed_are_refused(studio, two, tmp_path):
    with pytest.raises(StudioError, match="at least two runs"):
        studio.combinations.start([("one", 1.0)])
    other = small_base("llama", tmp_path / "other", num_hidden_layers=2)
    small_adapter(other, tmp_path / "three")
    work(studio, studio.runs.adopt(str(tmp_path / "three"), str(other)), adopt)
    with pytest.raises(StudioError, match="Combine runs of one base"):
        studio.combinations.start([("one", 1.0), ("three", 1.0)])
    file = studio.runs.open("two").folder / "fingerprint.json"
    kept = json.loads(file.read_text())
    kept["identity"]["base"]["model.safetensors"] = "0" * 64
    file.write_text(json.dumps(kept))
    with pytest.raises(StudioError, match="The run 'two' was trained on another base than the first"):
        work(studio, studio.combinations.start([("one", 1.0), ("two", 1.0)]), combine)


def test_weights_are_read_and_refused():
    assert parse_weights("", 2) == [1.0, 1.0] and parse_weights("0.7, -0.3", 2) == [0.7, -0.3]
    for text in ("0.7", "a,b", "nan,1", "1,2,3"):
        with pytest.raises(StudioError, match="is not 2 weights"):
            parse_weights(text, 2)


def parts_of(trained, *parts):
    return CombineRequest(
        parts=tuple(
            CombinePart(run=trained.home.runs / "one", weight=weight, checkpoint=kept) for kept, weight in parts
        )
    )


def scaled(folder):
    """What each pair of an adapter adds to its layer."""
    file = AdapterFile(folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    scale = file.config["lora_alpha"] / file.config["r"]
    names = [name for name in tensors if "lora_A" in name]
    return {name: scale * tensors[name.replace("lora_A", "lora_B")] @ tensors[name] for name in names}


def test_two_checkpoints_of_one_run_are_combined_each_with_its_weight(trained):
    done = trained.context(parts_of(trained, ("step-2", 0.75), ("step-3", 0.25)))
    report = done.work(combine).report
    run = trained.home.runs / "one"
    made = scaled(done.folder.adapter)
    two, three = (scaled(run / "checkpoints" / f"step-00000{step}") for step in (2, 3))
    assert (report.rank, report.layers) == (8, 14) and done.phases()[-1] == "combining the adapters"
    assert made.keys() == two.keys() and len(made) == 14
    for name, value in made.items():
        torch.testing.assert_close(value, 0.75 * two[name] + 0.25 * three[name], atol=1e-6, rtol=1e-4)


def test_parts_that_hold_the_same_weights_are_named(trained):
    """Once the weights of a run's adapter were taken for each of its checkpoints, and nothing showed it."""
    run = trained.home.runs / "one"
    done = trained.context(parts_of(trained, ("step-2", 1.0), ("step-3", 1.0)))
    done.work(combine)
    assert done.notes() == []
    write_folder(run / "adapter", lambda stage: _copy(run / "checkpoints" / "step-000003", stage))
    done = trained.context(parts_of(trained, ("step-3", 1.0), ("step-2", 1.0), ("", 0.5)))
    done.work(combine)
    assert done.notes() == ["one (step-3) and one hold the same weights: one part, counted twice."]


def test_what_a_combination_writes_beside_its_weights(trained):
    run = trained.home.runs / "one"
    record = read_json(run / "fingerprint.json")
    write_json(run / "fingerprint.json", record | {"thinks": True})
    write_folder(run / "adapter", lambda stage: _copy(run / "checkpoints" / "step-000003", stage))
    done = trained.context(parts_of(trained, ("step-2", 1.0), ("", 1.0)))
    assert done.work(combine) == ev.Finished(report=CombineReport(layers=14, rank=8))
    folder = done.folder.adapter
    assert find_damage(folder) == "" and sorted(path.name for path in folder.iterdir()) == [
        "MANIFEST.json", "adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json",
    ]  # fmt: skip
    config = (folder / "adapter_config.json").read_text()
    assert config.startswith('{\n "') and json.loads(config)["base_model_name_or_path"] == "tiny"
    assert list(json.loads(config)) == sorted(json.loads(config))
    kept = read_json(done.folder.path / "fingerprint.json")
    assert kept == {
        "schema": record["schema"], "base": "tiny", "revision": None, "identity": record["identity"], "thinks": True,
        "template_sha256": record["template_sha256"],
        "parts": [
            {"name": "one (step-2)", "weight": 1.0, "sha256": sha256(run / "checkpoints" / "step-000002" / WEIGHTS)},
            {"name": "one", "weight": 1.0, "sha256": sha256(run / "adapter" / WEIGHTS)},
        ],
    }  # fmt: skip
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def _copy(checkpoint, stage):
    for name in ADAPTER_FILES:
        shutil.copyfile(checkpoint / name, stage / name)
    (stage / "tokenizer_config.json").write_text("{}")


def test_a_damaged_part_and_another_template_are_refused(trained):
    run = trained.home.runs / "one"
    (run / "checkpoints" / "step-000002" / "state.json").write_text("{")
    with pytest.raises(StudioError, match=r"state\.json") as refused:
        trained.context(parts_of(trained, ("", 1.0), ("step-2", 1.0))).work(combine)
    assert refused.value.hint == "Choose another run or checkpoint."
    other = trained.home.runs / "two"
    shutil.copytree(run, other)
    for kept, refuses in (("0" * 64, True), (None, False)):
        write_json(other / "fingerprint.json", read_json(run / "fingerprint.json") | {"template_sha256": kept})
        request = CombineRequest(parts=(CombinePart(run=run, weight=1.0), CombinePart(run=other, weight=1.0)))
        if refuses:
            with pytest.raises(StudioError, match="different chat templates"):
                trained.context(request).work(combine)
        else:
            assert isinstance(trained.context(request).work(combine), ev.Finished)
