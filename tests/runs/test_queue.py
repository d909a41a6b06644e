"""Runs that wait: their order, what starts next, what an error of one costs the others, and who may start them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from qlora_studio.core import events as ev
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import TrainRequest
from qlora_studio.home import Home
from qlora_studio.runs import queue, supervisor
from qlora_studio.runs.folder import JobFolder, create_job, read_json, write_json
from qlora_studio.runs.journal import Journal
from qlora_studio.studio import Studio
from tests.runs.holders import held


def names(runs) -> list[str]:
    return [folder.name for folder in queue.waiting(runs)]


@pytest.fixture
def line(tmp_path):
    """Three runs that wait."""
    for name in ("one", "two", "three"):
        queue.put(create_job(tmp_path, name, TrainRequest()))
    return tmp_path


def test_runs_wait_in_the_order_they_came_and_once(line):
    queue.put(JobFolder(line / "one"))
    assert names(line) == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("name", "position", "order"),
    [
        ("three", 1, ["three", "one", "two"]),
        ("one", 2, ["two", "one", "three"]),
        ("one", 99, ["two", "three", "one"]),
        ("two", -5, ["two", "one", "three"]),
        ("two", 2, ["one", "two", "three"]),
    ],
)
def test_the_order_can_be_changed(line, name, position, order):
    queue.move(JobFolder(line / name), position)
    assert names(line) == order
    queue.put(create_job(line, "four", TrainRequest()))
    assert names(line) == [*order, "four"]


def test_one_that_does_not_wait_cannot_be_moved(line):
    queue.take_out(JobFolder(line / "two"))
    with pytest.raises(StudioError, match="The run 'two' does not wait"):
        queue.move(JobFolder(line / "two"), 1)


def test_a_broken_mark_costs_its_place_and_nothing_else(line):
    (line / "two" / "queued.json").write_text("{")
    assert names(line) == ["one", "three"]
    (line / "two" / "queued.json").write_text('{"place": "first"}')
    assert names(line) == ["two", "one", "three"]


@pytest.mark.slow
def test_of_two_who_look_at_once_one_starts(tmp_path):
    code = f"""
import time
from pathlib import Path
from qlora_studio.runs import queue
queue.LOCK_SECONDS = 0
with queue.alone(Path({str(tmp_path)!r})) as alone:
    print(alone, flush=True)
    time.sleep(2)
"""
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sorted(process.communicate()[0].strip() for process in both) == ["False", "True"]


class StudioWithStarts(Studio):
    """Everything is real but the worker's start and what the machine would say of the plan."""

    def __init__(self, home: Home) -> None:
        super().__init__(home)
        self.begun: list[str] = []
        self.refuses: dict[str, StudioError] = {}
        self.runs.data.check = lambda config: None  # type: ignore[method-assign]
        self.runs.begin = self._begin  # type: ignore[method-assign]
        self.queue._check = self._check  # type: ignore[method-assign]

    def _begin(self, job: JobFolder) -> None:
        self.begun.append(job.name)

    def _check(self, folder: JobFolder) -> None:
        if folder.name in self.refuses:
            raise self.refuses[folder.name]


@pytest.fixture
def studio(home):
    made = StudioWithStarts(Home.find())
    made.home.runs.mkdir()
    return made


def config(name: str) -> TrainConfig:
    return TrainConfig().replace({"saving.name": name})


def test_the_first_starts_at_once_and_the_others_wait_for_it(studio):
    assert studio.queue.add(config("one")) == "one"
    assert (studio.begun, studio.queue.names()) == (["one"], [])
    with held(studio.home.runs / ".training.lock", "one"):
        studio.queue.add(config("two"))
        studio.queue.add(config("three"))
        assert (studio.begun, studio.queue.names()) == (["one"], ["two", "three"])
        assert studio.runs.open("two").state == "queued"
        assert studio.queue.start_next() is None
    assert studio.queue.start_next() == "two" and studio.queue.names() == ["three"]


def test_a_run_that_cannot_start_fails_in_words_and_the_next_one_starts(studio):
    studio.refuses["one"] = StudioError("The run needs 9 GiB of disk.", "Free some space.")
    with held(studio.home.runs / ".training.lock", "other"):
        for name in ("one", "two"):
            studio.queue.add(config(name))
    assert studio.queue.start_next() == "two" and studio.begun == ["two"]
    view = studio.runs.open("one")
    assert (view.state, view.progress.message, view.progress.hint) == (
        "failed",
        "The run needs 9 GiB of disk.",
        "Free some space.",
    )
    studio.queue.add_again("one")
    assert studio.runs.open("one").state == "queued"


def test_a_start_that_comes_too_late_leaves_the_run_in_its_place(studio):
    def busy(job):
        raise supervisor.TrainingBusy("The run 'other' is still at work.")

    studio.runs.begin = busy
    assert studio.queue.add(config("one")) == "one" and studio.queue.names() == ["one"]
    assert studio.runs.open("one").state == "queued"


def test_a_sweep_is_one_run_a_combination_with_one_tag_of_its_own(studio):
    with held(studio.home.runs / ".training.lock", "other"):
        first = studio.queue.sweep(config("ranks"), {"lora.rank": [4, 8], "optim.seed": [1, 2]})
        again = studio.queue.sweep(config("ranks"), {"lora.rank": [4]})
    assert first == ["ranks-rank-4-seed-1", "ranks-rank-4-seed-2", "ranks-rank-8-seed-1", "ranks-rank-8-seed-2"]
    assert studio.queue.names() == [*first, *again]
    configs = [studio.runs.open(name).config for name in first]
    assert [(one.lora.rank, one.optim.seed) for one in configs] == [(4, 1), (4, 2), (8, 1), (8, 2)]
    assert {studio.runs.open(name).labels.tags for name in first} == {("ranks",)}
    assert studio.runs.open(again[0]).labels.tags == ("ranks-2",)


def test_a_sweep_with_a_wrong_value_makes_no_run_at_all(studio):
    with pytest.raises(StudioError, match="0 is not allowed"):
        studio.queue.sweep(config("ranks"), {"lora.rank": [4, 0]})
    with pytest.raises(StudioError, match=r"There is no setting 'lora\.rnk'"):
        studio.queue.sweep(config("ranks"), {"lora.rnk": [4]})
    with pytest.raises(StudioError, match="This sweep has 101 runs"):
        studio.queue.sweep(config("ranks"), {"optim.seed": list(range(101))})
    assert studio.runs.all() == [] and studio.queue.names() == []


def test_who_never_began_is_deleted_and_who_was_to_go_on_stays(studio):
    with held(studio.home.runs / ".training.lock", "other"):
        studio.queue.add(config("new"))
        old = studio.runs.create(config("old"))
        journal = Journal(old.events)
        journal.append(ev.JobStarted(job="train"))
        journal.append(ev.Stopped(step=3, paused=True))
        journal.close()
        assert studio.runs.open("old").state == "paused"
        studio.queue.add_again("old")
        assert studio.queue.names() == ["new", "old"]
        for name in ("new", "old"):
            studio.queue.remove(name)
    assert [(run.name, run.state) for run in studio.runs.all()] == [("old", "paused")]
    with pytest.raises(StudioError, match="does not wait"):
        studio.queue.remove("old")


def test_a_place_is_one_behind_the_last_and_hidden_folders_do_not_wait(tmp_path):
    first, second, third = (create_job(tmp_path, name, TrainRequest()) for name in ("b", "a", "c"))
    queue.put(first)
    assert read_json(first.queue_file) == {"place": 1.0}
    write_json(first.queue_file, {"place": 7.5})
    queue.put(second)
    queue.put(second)
    assert read_json(second.queue_file) == {"place": 8.5}
    write_json(third.queue_file, {"place": 7.5})
    (tmp_path / ".hidden").mkdir()
    write_json(tmp_path / ".hidden" / "queued.json", {"place": 1})
    assert names(tmp_path) == ["b", "c", "a"], "those of one place by name"
    queue.move(second, 1)
    assert [read_json(job.queue_file) for job in (second, first, third)] == [
        {"place": number} for number in (1.0, 2.0, 3.0)
    ]
    queue.take_out(second)
    queue.take_out(second)
    assert names(tmp_path) == ["b", "c"]


def test_whoever_starts_runs_is_alone_until_the_block_ends(tmp_path, monkeypatch):
    runs = tmp_path / "home" / "runs"
    for _ in range(2):
        with queue.alone(runs) as alone:
            assert alone and (runs / queue.LOCK).exists()
    monkeypatch.setattr(queue, "LOCK_SECONDS", 0)
    with held(runs / queue.LOCK), queue.alone(runs) as alone:
        assert not alone
    with pytest.raises(KeyError), queue.alone(runs):
        raise KeyError
    with queue.alone(runs) as alone:
        assert alone
