"""The door of a worker: which locks it takes, what its exit code says, and that one event is the last."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pytest

import qlora_studio.worker.__main__ as door
from qlora_studio.core import events as ev
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import DoctorReport, DoctorRequest, TrainRequest
from qlora_studio.runs.folder import create_job
from qlora_studio.runs.journal import Follower, Journal
from qlora_studio.runs.queue import put
from qlora_studio.worker import doctor
from qlora_studio.worker.context import Context


class FakeLock:
    """A lock by its file's name, whose takers are written down."""

    def __init__(self, path, words="", *, log, busy=()):
        self.path, self.words, self.log, self.busy = path, words, log, busy

    def acquire(self, timeout_seconds=0):
        self.log.append(("take", self.path.name, timeout_seconds))
        return self.path.name not in self.busy

    def release(self):
        self.log.append(("leave", self.path.name))


@pytest.fixture
def entered(tmp_path, monkeypatch):
    """The door with fake locks and a guard that only says that it got through."""
    log, busy = [], set()
    mask = os.umask(0o022)
    monkeypatch.setattr(door, "ProcessLock", lambda path, words="": FakeLock(path, words, log=log, busy=busy))
    monkeypatch.setattr(door, "guard", lambda folder, command: log.append(("guard", command[-3:])) or 7)
    monkeypatch.setattr(door, "start_next", lambda folder: log.append(("next", folder.name)))
    monkeypatch.setattr(door, "own_card", lambda: "GPU-1")
    monkeypatch.setattr(
        door, "needed_locks",
        lambda folder, request, card: log.append(("needs", card)) or (
            [FakeLock(tmp_path / "deep" / f"{name}.lock", log=log, busy=busy) for name in "ab"] if card else []
        ),
    )  # fmt: skip
    yield log, busy
    os.umask(mask)


def test_a_training_holds_its_locks_around_its_guard_and_then_looks_for_the_next(tmp_path, entered):
    log, _ = entered
    job = create_job(tmp_path, "one", TrainRequest())
    assert door.main(["worker", str(job.path)]) == 7
    assert log == [
        ("needs", "GPU-1"), ("take", "a.lock", 2), ("take", "b.lock", 2), ("take", "worker.lock", 10),
        ("guard", [str(job.path), "--inner", str(os.getpid())]),
        ("leave", "worker.lock"), ("leave", "a.lock"), ("leave", "b.lock"), ("next", "one"),
    ]  # fmt: skip
    assert (tmp_path / "deep").is_dir()
    assert os.umask(0o077) == 0o077, "nobody else reads what a worker writes"


def test_another_job_takes_its_own_lock_alone_and_starts_nothing(tmp_path, entered):
    log, _ = entered
    job = create_job(tmp_path, "look", DoctorRequest())
    assert door.main(["worker", str(job.path)]) == 7
    assert [entry[:2] for entry in log] == [
        ("needs", None), ("take", "worker.lock"), ("guard", [str(job.path), "--inner", str(os.getpid())]),
    ]  # fmt: skip


def test_a_busy_card_is_said_with_its_holder(tmp_path, entered, capsys):
    log, busy = entered
    busy.add("b.lock")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.lock").write_text("the other")
    job = create_job(tmp_path, "one", TrainRequest())
    assert door.main(["worker", str(job.path)]) == 3
    assert capsys.readouterr().err == "The run 'the other'\n" and log[-1] == ("take", "b.lock", 2)


def test_a_folder_that_another_worker_holds_or_that_is_none_cannot_begin(tmp_path, entered, capsys):
    log, busy = entered
    busy.add("worker.lock")
    job = create_job(tmp_path, "look", DoctorRequest())
    assert door.main(["worker", str(job.path)]) == 2
    assert capsys.readouterr().err == f"Another worker holds {job.lock_file}.\n"
    del log[:]
    (tmp_path / "empty").mkdir()
    assert door.main(["worker", str(tmp_path / "empty")]) == 2
    assert "This file cannot be read" in capsys.readouterr().err and log == []


def test_the_inner_process_is_told_who_guards_it(tmp_path, entered, monkeypatch):
    asked = []
    monkeypatch.setattr(door, "work_alone", lambda folder, guard: asked.append((folder.path, guard)) or 5)
    job = create_job(tmp_path, "look", DoctorRequest())
    assert door.main(["worker", str(job.path), "--inner", "41"]) == 5
    assert asked == [(job.path, 41)]


@pytest.mark.parametrize(
    ("request_", "place"), [(TrainRequest(), ".inner.lock"), (DoctorRequest(), "inner.lock")], ids=["training", "other"]
)
def test_nobody_works_beside_one_whose_guard_was_killed(tmp_path, entered, monkeypatch, request_, place):
    log, busy = entered
    job = create_job(tmp_path / "runs", "one", request_)
    did = []
    monkeypatch.setattr(door, "do", lambda folder, guard: did.append((folder, guard)) or 0)
    assert door.work_alone(job, os.getppid()) == 0 and did == [(job, os.getppid())]
    assert log == [("take", place, 300)]
    assert door.work_alone(job, os.getppid() + 1) == 2
    busy.add(place)
    assert door.work_alone(job, os.getppid()) == 2 and len(did) == 1


def test_the_inner_lock_of_a_training_is_that_of_its_home(tmp_path, monkeypatch):
    places = []
    monkeypatch.setattr(
        door, "ProcessLock", lambda path: places.append(path) or SimpleNamespace(acquire=lambda _: False)
    )
    training, look = (
        create_job(tmp_path / "runs", "one", TrainRequest()),
        create_job(tmp_path / "jobs", "look", DoctorRequest()),
    )
    for job in (training, look):
        assert door.work_alone(job, os.getppid()) == 2
    assert places == [tmp_path / "runs" / ".inner.lock", look.path / "inner.lock"]


@pytest.mark.parametrize(
    ("cards", "found"),
    [
        ([], None),
        ([SimpleNamespace(uuid="GPU-1", index=0), SimpleNamespace(uuid="GPU-2", index=1)], "GPU-1"),
        ([SimpleNamespace(uuid="", index=3)], "number-3"),
    ],
)
def test_the_card_of_this_process_is_the_first_it_sees(monkeypatch, cards, found):
    monkeypatch.setattr(door, "read_cards", lambda: cards)
    assert door.own_card() == found


def test_the_next_run_is_started_behind_one_that_ended_and_not_behind_one_that_was_paused(
    tmp_path, monkeypatch, capsys
):
    started = []

    class Queue:
        def start_next(self):
            started.append(True)
            if len(started) == 2:
                raise StudioError("The queue cannot go on.")

    monkeypatch.setattr("qlora_studio.studio.Studio", lambda: SimpleNamespace(queue=Queue()))
    job, other = (create_job(tmp_path / "runs", name, TrainRequest()) for name in ("one", "two"))
    journal = Journal(job.events)
    journal.append(ev.JobStarted(job="train"))
    journal.append(ev.Stopped())
    journal.close()
    door.start_next(job)
    assert started == [], "nobody waits"
    put(other)
    door.start_next(job)
    assert started == [True]
    door.start_next(job)
    assert started == [True] * 2 and "The queue cannot go on." in capsys.readouterr().err
    with job.events.open("a") as file:
        file.write('{"time": 2.0, "event": "stopped", "paused": true}\n')
    door.start_next(job)
    assert len(started) == 2, "somebody wants the card"


@pytest.fixture
def job(tmp_path, monkeypatch):
    """The folder of a job that does what a test gives it, and whose signals do not outlive the test."""
    before = {number: signal.getsignal(number) for number in door.STOPPING}
    yield create_job(tmp_path, "look", DoctorRequest())
    for number, handler in before.items():
        signal.signal(number, handler)


def read_events(job):
    return list(Follower(job.events).read())


def test_a_job_begins_and_ends_in_its_journal(job, monkeypatch):
    contexts = []
    monkeypatch.setattr(
        doctor, "run", lambda context: contexts.append(context) or ev.Finished(report=DoctorReport(checks=()))
    )
    assert door.do(job, 41) == 0
    begun, last = read_events(job)
    assert begun == ev.JobStarted(job="doctor", pid=os.getpid())
    assert last == ev.Finished(report=DoctorReport(checks=()))
    (context,) = contexts
    assert (context.folder, context.guard, context.own_process, context.stopped) == (job, 41, True, False)
    assert context.all_written()


def test_a_signal_is_a_request_to_stop(job, monkeypatch):
    def run(context):
        heard = []
        for number in door.STOPPING:
            context.stopped = False
            signal.raise_signal(number)
            heard.append(context.pending_request())
        assert heard == ["stop"] * len(door.STOPPING)
        return ev.Stopped()

    monkeypatch.setattr(doctor, "run", run)
    assert door.do(job, os.getppid()) == 0
    assert read_events(job)[-1] == ev.Stopped()


def test_what_a_job_raises_is_its_last_event_and_the_log_has_it_all(job, monkeypatch, capsys):
    def run(context):
        raise ValueError("odd")

    monkeypatch.setattr(doctor, "run", run)
    closed = []
    close = Journal.close
    monkeypatch.setattr(Journal, "close", lambda self: closed.append(self) or close(self))
    assert door.do(job, 41) == 1 and len(closed) == 1
    assert "Traceback" in capsys.readouterr().err
    last = read_events(job)[-1]
    assert last.message == "Something unexpected went wrong: ValueError: odd"
    assert last.hint == f"The whole story is in {job.log}."


def test_a_job_file_that_cannot_be_read_fails_the_job(job):
    job.job_file.write_text("{")
    events = []
    last = door.work(Context(job, events.append, os.getppid()))
    assert isinstance(last, ev.Failed) and events == [last] and "cannot be read" in last.message
