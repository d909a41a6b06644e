"""Where a job stands, and a history that is read once."""

from __future__ import annotations

import json
import os

import pytest

from qlora_studio.core import events as ev
from qlora_studio.core.jobs import TrainRequest
from qlora_studio.core.progress import Progress, find_state
from qlora_studio.runs import store as store_module
from qlora_studio.runs.folder import STARTING_SECONDS, JobFolder, create_job
from qlora_studio.runs.journal import Follower, Journal
from qlora_studio.runs.store import RunStore
from tests.core.test_progress import step
from tests.runs.holders import held


def make_run(runs, title="one", *events: ev.Event) -> JobFolder:
    """A run's folder with these events in its journal."""
    job = create_job(runs, title, TrainRequest(), {"config.json": {}})
    journal = Journal(job.events)
    for event in events:
        journal.append(event)
    journal.close()
    return job


STARTED, ENDED = Progress(state="running", job="train"), Progress(state="stopped", job="train")


@pytest.mark.parametrize(
    ("progress", "alive", "seen", "stop_requested", "state"),
    [
        (Progress(), False, False, False, "starting"),
        (Progress(), True, True, False, "starting"),
        (Progress(), False, True, False, "interrupted"),
        (STARTED, True, True, False, "running"),
        (STARTED, True, True, True, "stopping"),
        (Progress(), True, True, True, "stopping"),
        (STARTED, False, True, False, "interrupted"),
        (STARTED, False, True, True, "interrupted"),
        (ENDED, True, True, True, "stopped"),
        (ENDED, False, True, False, "stopped"),
    ],
)
def test_the_state_is_what_a_person_means(progress, alive, seen, stop_requested, state):
    assert find_state(progress, alive=alive, seen=seen, stop_requested=stop_requested) == state


def test_the_state_follows_lock_request_and_last_event(tmp_path):
    job, store = make_run(tmp_path), RunStore(tmp_path)
    states = [store.open("one").state]
    with held(job.lock_file):
        states.append(store.open("one").state)
        journal = Journal(job.events)
        journal.append(ev.JobStarted(job="train"))
        states.append(store.open("one").state)
        job.ask("stop")
        states.append(store.open("one").state)
    states.append(store.open("one").state)
    journal.append(ev.Stopped(step=3))
    journal.close()
    states.append(store.open("one").state)
    assert states == ["starting", "starting", "running", "stopping", "interrupted", "stopped"]


def test_a_job_whose_process_never_came_is_interrupted_in_the_end(tmp_path):
    job = make_run(tmp_path)
    old = job.job_file.stat().st_mtime - STARTING_SECONDS - 1
    os.utime(job.job_file, (old, old))
    assert RunStore(tmp_path).open("one").state == "interrupted"


def test_a_clock_that_is_set_back_makes_no_negative_duration(tmp_path):
    job = make_run(tmp_path)
    lines = [{"time": 1000.0, **ev.JobStarted(job="train").to_json()}, {"time": 400.0, **ev.Stopped().to_json()}]
    job.events.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert RunStore(tmp_path).open("one").seconds == 0.0


def test_a_summary_says_what_the_run_says(tmp_path):
    make_run(tmp_path, "One", ev.JobStarted(job="train"), step(1), step(2), ev.Stopped(step=2))
    (summary,) = RunStore(tmp_path).summaries()
    view = RunStore(tmp_path).open("one")
    assert (summary.name, summary.title, summary.state) == ("one", "One", "stopped") and summary.has_curve
    assert (summary.step, summary.total_steps, summary.loss) == (2, 4, view.progress.last.loss)
    assert (summary.base, summary.rank) == ("smollm2-135m-instruct", 16)
    assert (summary.peak_bytes, summary.seconds) == (2000, view.seconds) and not summary.has_adapter


def test_a_fresh_process_reads_no_journal_of_a_run_that_is_over(tmp_path, monkeypatch):
    runs, cache = tmp_path / "runs", tmp_path / "cache"
    for number in range(3):
        make_run(runs, f"run {number}", ev.JobStarted(job="train"), step(1), ev.Stopped(step=1))
    first = RunStore(runs, cache).summaries()
    reads: list[str] = []
    whole = Follower.read
    monkeypatch.setattr(
        store_module.Follower, "read", lambda self: (reads.append(self.path.parent.name), whole(self))[1]
    )
    again = RunStore(runs, cache)
    assert again.summaries() == first and reads == []
    job = make_run(runs, "new", ev.JobStarted(job="train"))
    assert {run.name for run in again.summaries()} == {"new", "run-0", "run-1", "run-2"} and set(reads) == {"new"}
    journal = Journal(job.events)
    journal.append(ev.Stopped(step=7))
    journal.close()
    assert next(run for run in again.summaries() if run.name == "new").step == 7


def test_what_changed_on_disk_is_read_again_and_what_is_gone_is_gone(tmp_path):
    runs, cache = tmp_path / "runs", tmp_path / "cache"
    job = make_run(runs, "one", ev.JobStarted(job="train"), ev.Stopped(step=1))
    store = RunStore(runs, cache)
    assert [run.step for run in store.summaries()] == [1]
    journal = Journal(job.events)
    journal.append(ev.JobStarted(job="train"))
    journal.append(ev.Stopped(step=5))
    journal.close()
    assert [run.step for run in store.summaries()] == [5] == [run.step for run in RunStore(runs, cache).summaries()]
    for path in sorted(job.path.iterdir()):
        path.unlink()
    job.path.rmdir()
    assert store.summaries() == [] == RunStore(runs, cache).summaries()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 1}', '{"version": 1, "runs": {"one": 3}}', "\xff"])
def test_a_broken_cache_costs_time_only(tmp_path, content):
    runs, cache = tmp_path / "runs", tmp_path / "cache"
    make_run(runs, "one", ev.JobStarted(job="train"), ev.Stopped(step=1))
    cache.mkdir()
    (cache / store_module.CACHE).write_text(content, encoding="latin-1")
    assert [run.step for run in RunStore(runs, cache).summaries()] == [1]


def test_a_run_whose_config_cannot_be_read_is_listed_with_that_fact(tmp_path):
    job = make_run(tmp_path, "one", ev.JobStarted(job="train"), ev.Stopped(step=1))
    job.config_file.write_text('{"lora": {"rank": "many"}}')
    (summary,) = RunStore(tmp_path).summaries()
    assert summary.state == "stopped" and "field 'lora.rank': 'many' is not allowed" in summary.unreadable
