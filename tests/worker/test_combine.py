"""Adapters of several runs become a run of their own, or are refused in words."""

from __future__ import annotations

import json
import os

import pytest

from qlora_studio.core import events as ev
from qlora_studio.core.errors import StudioError
from qlora_studio.core.exports import parse_weights
from qlora_studio.core.jobs import ExportRequest
from qlora_studio.engine.adapter_file import AdapterFile
from qlora_studio.engine.manifest import find_damage
from qlora_studio.home import Home
from qlora_studio.runs import supervisor
from qlora_studio.runs.folder import JobFolder, create_job
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
