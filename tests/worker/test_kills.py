"""Kills, errors, full disks and out-of-memories of a real worker cost no checkpoint, no step and no bit of the curve."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time

import pytest
from tqdm import std as progress

from qlora_studio.engine import checkpoints
from qlora_studio.runs.folder import JobFolder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks its workers")


@pytest.mark.slow
def test_random_faults_cost_nothing(harness, tmp_path):
    tally = harness.run_faults(tmp_path, 300, seed=300)
    assert tally.wrong == []
    assert tally.kills >= 300 and tally.runs >= 2, tally.summary()


def write_in_place(target, fill):
    """How a trainer saves that does not think of kills: under the final name, file by file."""
    target.mkdir(parents=True, exist_ok=True)
    fill(target)
    (target / "MANIFEST.json").write_text("{}")


@pytest.mark.slow
def test_the_same_faults_catch_a_writer_that_is_not_whole_or_nothing(harness, tmp_path, monkeypatch):
    home, config = harness.make_home(tmp_path)
    folder = harness.new_run(home, config, 0)
    monkeypatch.setattr(checkpoints, "write_folder", write_in_place)
    assert harness.end(harness.begin(folder, home, "save.optimizer:kill@2")) == -9
    wrong, _ = harness.find_wrong(folder, 0)
    assert any("MANIFEST.json is missing or unreadable" in line for line in wrong)


POINTS = ["save.begin", "save.adapter", "save.optimizer", "save.state", "save.filled", "save.manifest", "save.synced",
          "save.placed", "save.trashed"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "action"),
    [
        *(
            (point, "kill") if point == "save.placed" else pytest.param(point, "kill", marks=pytest.mark.slow)
            for point in POINTS
        ),
        *(pytest.param(point, "full", marks=pytest.mark.slow) for point in POINTS if point != "save.trashed"),
    ],
)  # what is only deleted needs no room
def test_a_fault_at_each_point_of_a_save_costs_nothing(harness, whole, point, action):
    """A kill is resumed; a disk that is full at one write is a word in the log, and the run goes on to its end."""
    home, config, record = whole
    folder = harness.new_run(home, config, POINTS.index(point) + 10)
    code = harness.end(harness.begin(folder, home, f"{point}:{action}@3"))
    assert code == (-9 if action == "kill" else 0), folder.log.read_text()
    wrong, newest = harness.find_wrong(folder, 1)
    assert wrong == [] and newest >= 1
    if action == "kill":
        assert harness.end(harness.begin(folder, home)) == 0
    assert harness.compare(folder, record, exact=True) == []
    assert not list(folder.path.rglob(".stage")) and not list(folder.path.rglob(".trash"))


@pytest.mark.slow
def test_a_disk_that_is_full_for_the_journal_costs_nothing_once_there_is_room(harness, whole):
    home, config, record = whole
    folder = harness.new_run(home, config, 50)
    faults = ",".join(f"journal:full@{number}" for number in range(6, 40, 3))
    assert harness.end(harness.begin(folder, home, faults)) == 0
    assert harness.read_record(folder) == record


@pytest.mark.slow
@pytest.mark.parametrize("from_the_end", [0, 1])
def test_an_unforeseen_error_in_the_last_lines_of_the_journal_costs_a_resume_at_most(harness, whole, from_the_end):
    home, config, record = whole
    counted = harness.new_run(home, config, 52 + from_the_end)  # the first run of a home says more than the others
    assert harness.end(harness.begin(counted, home)) == 0
    lines = len(harness.events(counted))
    folder = harness.new_run(home, config, 55 + from_the_end)
    code = harness.end(harness.begin(folder, home, f"journal:error@{lines - from_the_end}"))
    assert code == 1, folder.log.read_text()
    assert harness.events(folder)[-1]["event"] != "finished"
    assert harness.end(harness.begin(folder, home)) == 0
    assert harness.compare(folder, record, exact=True) == []


@pytest.mark.slow
def test_sample_answers_change_no_bit_of_a_run(harness, whole):
    home, config, record = whole
    sampling = config.replace({"evaluation.prompts": "Count 3 | Count 4", "evaluation.answer_tokens": 5})
    folder = harness.new_run(home, sampling, 60)
    assert harness.end(harness.begin(folder, home)) == 0, folder.log.read_text()
    assert harness.read_record(folder) == record
    samples = [one for one in harness.events(folder) if one.get("event") == "sample"]
    assert {one["prompt"] for one in samples} == {"Count 3", "Count 4"} and {one["step"] for one in samples} >= {0, 10}


@pytest.mark.slow
def test_a_run_that_is_killed_after_its_last_step_still_reports_that_steps_loss(harness, whole):
    home, config, record = whole
    first = harness.events(JobFolder(home.runs / "run-0"))
    saves = sum(one.get("event") in ("checkpoint", "adapter") for one in first)
    folder = harness.new_run(home, config, 70)
    assert harness.end(harness.begin(folder, home, f"save.begin:kill@{saves}")) == -9
    before = len(harness.events(folder))
    assert max(one["step"] for one in harness.events(folder) if one.get("event") == "step") == max(record.losses)
    assert harness.end(harness.begin(folder, home)) == 0, folder.log.read_text()
    resumed = harness.events(folder)[before:]
    assert not any(one.get("event") == "step" for one in resumed), "no step was left to take"
    assert resumed[-1]["report"]["loss"] == first[-1]["report"]["loss"] == record.losses[max(record.losses)]


@pytest.mark.slow
def test_an_interrupt_of_the_benchmark_is_not_one_of_its_workers(harness, whole, monkeypatch):
    """Ctrl-C goes to a whole group of processes: a worker has its own, and none is left behind."""
    home, config, _ = whole
    worker = harness.begin(harness.new_run(home, config, 80), home)
    began = time.monotonic()
    while os.getpgid(worker) != worker and time.monotonic() - began < 30:
        time.sleep(0.01)
    assert os.getpgid(worker) == worker

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(harness.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        harness.end(worker)
    monkeypatch.undo()
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_a_worker_killed_while_it_draws_its_progress_holds_up_no_other(harness, whole, monkeypatch):
    """A kill in that moment once kept tqdm's lock for good: each later worker of the process hung, and then the tests."""

    def draw_and_die(*_):
        progress.tqdm.get_lock().acquire()
        os.kill(os.getpid(), signal.SIGKILL)

    home, config, _ = whole
    monkeypatch.setattr(progress.TqdmDefaultWriteLock, "mp_lock", multiprocessing.RLock(), raising=False)
    monkeypatch.setattr(progress.tqdm, "_lock", progress.TqdmDefaultWriteLock(), raising=False)
    monkeypatch.setattr(harness, "HUNG_SECONDS", 60)
    with monkeypatch.context() as patch:
        patch.setattr("qlora_studio.worker.__main__.work_alone", draw_and_die)
        assert harness.end(harness.begin(harness.new_run(home, config, 90), home)) == -signal.SIGKILL
    assert harness.end(harness.begin(harness.new_run(home, config, 91), home)) == 0
