"""The history, value by value: a run's line whole, its order, and what is kept between processes."""

import json
import os

import pytest

from qlora_studio.core import events as ev
from qlora_studio.core.jobs import TrainRequest
from qlora_studio.core.labels import Labels
from qlora_studio.core.runs import RunSummary
from qlora_studio.runs.folder import create_job, read_json, write_json
from qlora_studio.runs.journal import Journal
from qlora_studio.runs.store import CACHE, CACHE_VERSION, RunStore
from qlora_studio.studio import Studio
from tests.runs.holders import held
from tests.runs.made import make_run

ADAPTER = ("adapter", "MANIFEST.json")


@pytest.fixture
def studio(home) -> Studio:
    return Studio()


@pytest.fixture
def store(studio, tmp_path) -> RunStore:
    return RunStore(studio.home.runs, tmp_path / "cache")


def test_a_line_of_a_run_that_ended(studio, store):
    job = make_run(studio, "one", 1.25, lora__rank=24, model__base="org/Small-1B/")
    job.write_labels(Labels(title="The first", note="good", tags=("a", "b"), pinned=True))
    created = read_json(job.job_file)["created"]
    (line,) = store.summaries()
    assert line.model_copy(update={"seconds": None}) == RunSummary(
        name="one", title="The first", created=created, state="finished", base="Small-1B", rank=24,
        held_out=1.55, best_held_out=1.25, has_adapter=True, note="good", tags=("a", "b"), pinned=True,
    )  # fmt: skip
    assert 0 <= line.seconds < 10 and store.names() == ["one"]
    view = store.open("one")
    assert (view.name, view.title, view.created, view.folder, view.has_adapter) == (
        "one", "The first", created, job.path, True,
    )  # fmt: skip
    assert view.config.lora.rank == 24 and view.labels.note == "good"


def test_a_line_of_a_run_whose_files_are_broken(studio, store):
    broken, other = make_run(studio, "one", 1.0), make_run(studio, "two", 1.0)
    broken.job_file.write_text("{")
    os.utime(broken.job_file, (1000, 1000))
    other.config_file.write_text("{")
    two, one = store.summaries()
    assert (one.name, one.title, one.created, one.base, one.rank) == ("one", "one", 1000.0, "", 0)
    assert one.unreadable.startswith(f"{broken.job_file}: This file cannot be read: ")
    assert (two.title, two.created, two.base) == ("two", read_json(other.job_file)["created"], "")
    assert two.unreadable.startswith(str(other.config_file))


def test_the_pinned_come_first_then_the_newest_then_by_name(studio, store):
    for name, created, pinned in (("old", 10, True), ("b", 30, False), ("a", 30, False), ("new", 40, False)):
        job = make_run(studio, name, 1.0)
        write_json(job.job_file, read_json(job.job_file) | {"created": created})
        job.write_labels(Labels(pinned=pinned))
    assert store.names() == ["old", "new", "a", "b"]


def test_what_is_no_run_is_passed_over(studio, store):
    make_run(studio, "one", 1.0)
    (studio.home.runs / ".new-1").mkdir()
    (studio.home.runs / ".new-1" / "job.json").write_text("{}")
    (studio.home.runs / "empty").mkdir()
    (studio.home.runs / "file").write_text("")
    assert store.names() == ["one"]
    assert RunStore(studio.home.runs / "nowhere").summaries() == []


def kept_in(store):
    return read_json(store.cache)


def test_what_is_over_is_kept_and_what_is_at_work_is_not(studio, store):
    over, running = make_run(studio, "over", 1.0), make_run(studio, "running")
    with held(running.lock_file):
        assert {line.name: line.at_work for line in store.summaries()} == {"over": False, "running": True}
        kept = kept_in(store)
        assert (store.cache.name, kept["version"], list(kept["runs"])) == (CACHE, CACHE_VERSION, ["over"])
        assert RunSummary.model_validate(kept["runs"]["over"]["summary"]).best_held_out == 1.0
        facts = [path.stat() for path in (over.job_file, over.config_file, over.events, over.path.joinpath(*ADAPTER))]
        marks = [number for one in facts for number in (one.st_mtime_ns, one.st_size)]
        assert kept["runs"]["over"]["mark"] == [*marks[:4], 0, 0, *marks[4:6], 0, 0, *marks[6:]]
        assert set(store.followers) == {running.path}


@pytest.mark.parametrize(
    "name", ["job.json", "config.json", "labels.json", "events.jsonl", "queued.json", "adapter/MANIFEST.json"]
)
def test_a_file_that_changes_has_the_run_read_again(name, studio, store, monkeypatch):
    job = make_run(studio, "one", 1.0)
    store.summaries()
    read = []
    summarise = RunStore._summarise
    monkeypatch.setattr(
        RunStore, "_summarise", lambda self, folder: read.append(folder.name) or summarise(self, folder)
    )
    store.summaries()
    assert read == []
    path = job.path / name
    path.write_text((path.read_text() if path.exists() else "{}") + "\n")
    store.summaries()
    store.summaries()
    assert read == ["one"] or (
        name == "queued.json" and read == ["one", "one"]
    )  # one that waits is looked at each time


def test_a_file_is_written_only_when_something_is_new_or_gone(studio, store, monkeypatch):
    one, two = make_run(studio, "one", 1.0), make_run(studio, "two", 1.0)
    store.summaries()
    first = store.cache.stat().st_mtime_ns
    store.summaries()
    assert store.cache.stat().st_mtime_ns == first
    studio.runs.delete("two")
    assert store.names() == ["one"] and list(kept_in(store)["runs"]) == ["one"]
    assert not two.path.exists() and one.path.exists()


@pytest.mark.parametrize(
    "content", ["{}", "[]", "{", '{"version": 3, "runs": {}}', '{"version": 4}', '{"version": 4, "runs": {"one": {}}}']
)
def test_a_file_of_another_kind_is_nothing_known(content, studio, store):
    make_run(studio, "one", 1.0)
    store.cache.parent.mkdir()
    store.cache.write_text(content)
    assert store.names() == ["one"] and kept_in(store)["version"] == CACHE_VERSION


def test_a_place_that_cannot_be_written_costs_nothing(studio, tmp_path):
    make_run(studio, "one", 1.0)
    (tmp_path / "file").write_text("")
    assert RunStore(studio.home.runs, tmp_path / "file" / "cache").names() == ["one"]


def test_a_store_without_a_place_keeps_nothing_on_disk(studio, tmp_path):
    make_run(studio, "one", 1.0)
    store = RunStore(studio.home.runs)
    assert store.names() == ["one"] and store.cache is None and store.names() == ["one"]


def test_a_followed_job_is_read_on_and_forgotten(tmp_path):
    job, store = create_job(tmp_path, "one", TrainRequest(), {"config.json": {}}), RunStore(tmp_path)
    journal = Journal(job.events)
    journal.append(ev.JobStarted(job="train"))
    assert store.look(job).progress.job == "train" and list(store.followers) == [job.path]
    journal.append(ev.Stopped(step=3))
    journal.close()
    view = store.look(job)
    assert (view.state, view.progress.step) == ("stopped", 3) and view.seconds is not None
    store.forget(job)
    store.forget(job)
    assert store.followers == {}
    times = [json.loads(line)["time"] for line in job.events.read_text().splitlines()]
    assert view.seconds == pytest.approx(times[-1] - times[0])
