"""An adapter from elsewhere becomes a run that can be chatted with and exported, or is refused in words."""

from __future__ import annotations

import json
import os
import shutil
from types import SimpleNamespace
from typing import Any

import pytest

from qlora_studio.core import events as ev
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import AdoptReport, AdoptRequest, ExportRequest
from qlora_studio.engine.manifest import find_damage
from qlora_studio.home import Home
from qlora_studio.runs import supervisor
from qlora_studio.runs.folder import JobFolder, create_job, read_json
from qlora_studio.studio import Studio
from qlora_studio.worker import adopt, export
from qlora_studio.worker.context import Context
from tests.engine.adapter_variants import MERGEABLE
from tests.engine.gguf_file.small_models import small_adapter, small_base


@pytest.fixture
def studio(home, monkeypatch) -> Studio:
    monkeypatch.setattr(supervisor, "start", lambda job, card=None: None)  # run here, in this process
    return Studio()


def work(studio: Studio, job: Any) -> Context:
    folder = JobFolder(job.folder)
    context = Context(folder, lambda event: None, os.getppid(), home=Home(studio.home.root))
    last = adopt.run(context)
    (folder.path / "events.jsonl").write_text(json.dumps({"time": 1.0, **last.to_json()}) + "\n")
    return context


@pytest.mark.slow
def test_it_becomes_a_run_that_is_exported_like_any_other(studio, tmp_path):
    base = small_base("llama", tmp_path / "base", num_hidden_layers=2)
    small_adapter(base, tmp_path / "elsewhere")
    job = studio.runs.adopt(f'"{tmp_path / "elsewhere"}"', str(base), "From afar")
    context = work(studio, job)
    view = studio.runs.open(job.name)
    assert (view.name, view.state, view.has_adapter, view.config.lora.rank) == ("from-afar", "finished", True, 4)
    assert [run.name for run in studio.runs.all() if run.has_adapter] == ["from-afar"]
    assert find_damage(context.folder.adapter) == ""
    assert str(tmp_path) not in (context.folder.adapter / "adapter_config.json").read_text()
    request = ExportRequest(run=context.folder.path, to=tmp_path / "out", merge_into="as_chatted", prompts=("Hi",))
    events: list[Any] = []
    made = create_job(context.folder.path / "exports", "export", request)
    assert isinstance(export.run(Context(made, events.append, os.getppid(), home=context.home)), ev.Finished)
    assert [event.kl < 0.02 for event in events if isinstance(event, ev.Checked)] == [True]


@pytest.mark.parametrize("name", ["dora", "saved head, untied", "single tokens, tied", "grown vocabulary"])
def test_adapters_of_other_kinds_become_runs_too(studio, tmp_path, name):
    base, adapter = MERGEABLE[name].write(tmp_path)
    job = studio.runs.adopt(str(adapter), str(base))
    work(studio, job)
    assert studio.runs.open(job.name).has_adapter


def test_biases_that_cannot_be_switched_off_are_refused(studio, tmp_path):
    base, adapter = MERGEABLE["biases trained"].write(tmp_path)
    with pytest.raises(StudioError, match="has trained the base's own biases"):
        work(studio, studio.runs.adopt(str(adapter), str(base)))


def test_an_adapter_for_another_base_and_a_folder_without_one_are_refused(studio, tmp_path):
    base, adapter = MERGEABLE["plain"].write(tmp_path)
    other = small_base("llama", tmp_path / "other")
    with pytest.raises(
        StudioError, match=r"does not fit the base: .* is .128, 256., and the adapter was made for .32, 48."
    ):
        work(studio, studio.runs.adopt(str(adapter), str(other)))
    with pytest.raises(StudioError, match=r"adapter_config\.json is missing"):
        studio.runs.adopt(str(base))


def test_the_adapter_is_copied_with_its_tokenizer_and_nothing_else_of_its_folder(trained):
    """What it says of its base is the base's name here, and what it was made of is written down as for a training."""
    home = trained.home
    elsewhere = home.root / "elsewhere"
    shutil.copytree(home.runs / "one" / "adapter", elsewhere)
    values = json.loads((elsewhere / "adapter_config.json").read_text())
    changed = values | {"base_model_name_or_path": "/their/place", "inference_mode": False}
    (elsewhere / "adapter_config.json").write_text(json.dumps(changed))
    for name, text in (("tokenizer_config.json", "{}"), ("chat_template.jinja", "x"), ("README.md", "theirs")):
        (elsewhere / name).write_text(text)
    done = trained.context(AdoptRequest(adapter=elsewhere))
    assert done.work(adopt) == ev.Finished(report=AdoptReport(layers=14))
    assert done.phases() == ["comparing adapter and base", "hashing the base's weights"]
    made = done.folder.adapter
    assert find_damage(made) == "" and sorted(path.name for path in made.iterdir()) == [
        "MANIFEST.json", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja",
        "tokenizer_config.json",
    ]  # fmt: skip
    for name in ("adapter_model.safetensors", "chat_template.jinja", "tokenizer_config.json"):
        assert (made / name).read_bytes() == (elsewhere / name).read_bytes()
    text = (made / "adapter_config.json").read_text()
    wanted = values | {"base_model_name_or_path": "tiny", "inference_mode": True}
    assert json.loads(text) == wanted and text == json.dumps(wanted, indent=1, sort_keys=True)
    record = read_json(home.runs / "one" / "fingerprint.json")
    assert read_json(done.folder.path / "fingerprint.json") == {
        "schema": 2, "base": "tiny", "revision": None, "identity": record["identity"],
    }  # fmt: skip


@pytest.mark.parametrize(("bias", "refused"), [("none", False), (None, False), ("", False), ("all", True)])
def test_only_trained_biases_are_refused(tmp_path, bias, refused):
    adapter = SimpleNamespace(config={"bias": bias}, folder=tmp_path)
    if not refused:
        adopt.refuse_what_cannot_be_switched_off(adapter)
        adopt.refuse_what_cannot_be_switched_off(SimpleNamespace(config={}, folder=tmp_path))
        return
    with pytest.raises(StudioError) as caught:
        adopt.refuse_what_cannot_be_switched_off(adapter)
    (problem,) = caught.value.problems
    assert (problem.hint, problem.where) == ("Merge it with peft and use the result as a base.", str(tmp_path))
