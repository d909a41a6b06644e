"""What every job is given: the request that waits, its base, and what it starts with where nobody says otherwise."""

from __future__ import annotations

import json
import os

import pytest

from qlora_studio.core import events as ev
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.jobs import DoctorRequest, TrainRequest
from qlora_studio.home import Home
from qlora_studio.runs.folder import create_job
from qlora_studio.worker.context import Context, FetchedBase


@pytest.fixture
def job(tmp_path):
    return create_job(tmp_path / "runs", "one", TrainRequest())


@pytest.fixture
def context(job, tmp_path):
    events = []
    made = Context(job, events.append, os.getppid(), home=Home(tmp_path))
    made.events = events
    return made


def test_a_context_begins_unstopped_with_all_written_and_in_a_process_that_others_use(job, home):
    made = Context(job, print, 7)
    assert (made.stopped, made.all_written(), made.own_process) == (False, True, False)
    assert made.home == Home.find()


def test_a_save_is_answered_once_and_a_pause_or_a_stop_stands(context):
    assert context.pending_request() == ""
    context.folder.ask("save")
    assert [context.pending_request() for _ in range(2)] == ["save", ""]
    for stands in ("pause", "stop"):
        context.folder.ask("save")
        context.folder.ask(stands)
        assert [context.pending_request() for _ in range(2)] == [stands] * 2
    assert context.folder.is_requested("save"), "it is not answered while another request stands"


def test_a_save_that_somebody_takes_back_at_that_moment_is_no_error(context, monkeypatch):
    context.folder.ask("save")
    save = context.folder.control / "save"
    exists = type(save).exists

    def gone_after(path):
        found = exists(path)
        if path == save:
            path.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(type(save), "exists", gone_after)
    assert context.pending_request() == "save"


def test_a_signal_and_the_end_of_the_guard_are_stops(job):
    assert Context(job, print, os.getppid() + 1).pending_request() == "stop"
    assert Context(job, print, os.getppid(), stopped=True).pending_request() == "stop"
    assert Context(job, print, os.getppid()).pending_request() == ""


def test_a_job_that_is_asked_something_else_is_a_fault_of_the_program(context):
    assert context.request(TrainRequest) == TrainRequest()
    with pytest.raises(AssertionError, match="TrainRequest is not DoctorRequest"):
        context.request(DoctorRequest)


def test_a_base_on_the_disk_goes_by_its_hub_id_or_by_its_folder(context, tmp_path):
    base = tmp_path / "models" / "mine"
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").touch()
    config = TrainConfig().replace({"model.base": str(base)})
    assert context.fetch_base(config) == FetchedBase(base, "mine", None)
    (base / "source.json").write_text(json.dumps({"repo": "org/name", "commit": "abc"}))
    assert context.fetch_base(config) == FetchedBase(base, "org/name", "abc")
    assert context.events == []


def test_a_base_that_is_not_on_the_disk_is_fetched_in_its_revision(context, tmp_path, monkeypatch):
    asked = []

    def fetch(name, models, revision, announce):
        asked.append((name, models, revision))
        announce("downloading")
        (tmp_path / "there").mkdir()
        return tmp_path / "there"

    monkeypatch.setattr("qlora_studio.engine.fetch.fetch_base", fetch)
    config = TrainConfig().replace({"model.base": "org/name", "model.revision": "v2"})
    assert context.fetch_base(config) == FetchedBase(tmp_path / "there", "there", None)
    assert asked == [("org/name", tmp_path / "models", "v2")]
    assert context.events == [ev.PhaseEntered(phase="getting the base model"), ev.PhaseEntered(phase="downloading")]
