"""One card, one training, however many starts; and no worker that nobody guards."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.core.events import JobStarted
from qlora_studio.core.jobs import DoctorRequest, RateRequest, TrainRequest
from qlora_studio.runs import supervisor
from qlora_studio.runs.folder import create_job
from qlora_studio.runs.journal import Follower, Journal
from qlora_studio.runs.lock import is_held
from qlora_studio.runs.supervisor import (
    BUSY,
    TrainingBusy,
    find_training,
    runs_under_wsl,
    start,
    training_lock,
    worker_environment,
)
from qlora_studio.worker.__main__ import failure
from qlora_studio.worker.guard import inner_command
from qlora_studio.worker.locks import SEARCH
from tests.matrix import mostly_slow
from tests.runs.holders import held

GUARD = """
import os, sys, time, types
from pathlib import Path
import qlora_studio.worker.__main__ as worker
def guard(folder, command):
    (folder.path / "at-work").touch()
    time.sleep(float(os.environ.get("HOLD_SECONDS", "1.5")))
    return 0
worker.guard, worker.LEAVE_LOCK_SECONDS = guard, 0.2
if card := os.environ.get("PRETENDED_CARD"):
    worker.read_cards = lambda: [types.SimpleNamespace(uuid=card, index=0)]
sys.exit(worker.main(["worker", sys.argv[1]]))
"""
"""The real door of a worker, with a guard that only says that it got through."""


def make_runs(folder: Path, count: int) -> list[Path]:
    return [create_job(folder / "runs", f"run {number}", TrainRequest()).path for number in range(count)]


@pytest.mark.slow
def test_of_many_starts_at_once_one_trains_and_the_others_are_told(tmp_path, monkeypatch):
    monkeypatch.setenv("HOLD_SECONDS", "300")
    runs = make_runs(tmp_path, 20)
    starts = [subprocess.Popen([sys.executable, "-c", GUARD, str(run)]) for run in runs]
    until = time.monotonic() + 120
    while sum(process.poll() is not None for process in starts) < 19 and time.monotonic() < until:
        time.sleep(0.05)
    codes = [process.poll() for process in starts]
    for process in starts:
        process.kill()
        process.wait()
    assert sorted(codes, key=str) == [*[BUSY] * 19, None]
    assert [run for run in runs if (run / "at-work").exists()] == [runs[codes.index(None)]]


@pytest.mark.slow
def test_a_start_beside_a_training_names_it(tmp_path):
    (run,) = [create_job(tmp_path / "runs", "second", TrainRequest())]
    with held(training_lock(run), "first"):
        assert find_training(run.path.parent) == "first"
        with pytest.raises(TrainingBusy, match="The run 'first' is still at work"):
            start(run)
    assert find_training(run.path.parent) is None


def start_in(home: Path, card: str, request=None) -> subprocess.Popen:
    """A start in a home of its own, on a machine with this card."""
    place = home / ("cache/rates" if isinstance(request, RateRequest) else "runs")
    job = create_job(place, "one", request or TrainRequest())
    return subprocess.Popen(
        [sys.executable, "-c", GUARD, str(job.path)], stderr=subprocess.PIPE, text=True,
        env={**worker_environment(), "PRETENDED_CARD": card, "HOLD_SECONDS": "300"},
    )  # fmt: skip


def wait_for_work(home: Path) -> None:
    until = time.monotonic() + 60
    while not list(home.rglob("at-work")):
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
def test_a_card_trains_for_one_home_and_another_card_for_another(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    first = start_in(tmp_path / "a", "GPU-1")
    wait_for_work(tmp_path / "a")
    second = start_in(tmp_path / "b", "GPU-1")
    assert second.wait(60) == BUSY and second.stderr.read() == f"The run 'one of {tmp_path / 'a'}'\n"
    other = start_in(tmp_path / "c", "GPU-2")
    wait_for_work(tmp_path / "c")
    assert other.poll() is None and first.poll() is None
    for process in (first, other):
        process.kill()
        process.communicate()
    again = start_in(tmp_path / "b", "GPU-1")
    wait_for_work(tmp_path / "b")
    again.kill()
    again.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("search_first", [True, False])
def test_a_search_for_a_rate_and_a_training_do_not_share_the_card(tmp_path, search_first):
    requests = [RateRequest(steps=3), TrainRequest()]
    first, second = requests if search_first else reversed(requests)
    begun = start_in(tmp_path, "", first)
    wait_for_work(tmp_path)
    assert (find_training(tmp_path / "runs") == SEARCH) == search_first
    refused = start_in(tmp_path, "", second)
    assert refused.wait(60) == BUSY and (SEARCH if search_first else "one") in refused.stderr.read()
    begun.kill()
    begun.communicate()


@pytest.mark.slow
def test_other_jobs_may_start_beside_a_training(tmp_path):
    job = create_job(tmp_path, "look", DoctorRequest())
    with held(tmp_path / ".training.lock", "first"):
        done = subprocess.run([sys.executable, "-c", GUARD, str(job.path)], check=False)
    assert done.returncode == 0


def test_a_worker_whose_guard_is_gone_before_it_looks_does_nothing(tmp_path):
    job = create_job(tmp_path, "one", TrainRequest())
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    begun = time.monotonic()
    done = subprocess.run(inner_command(job, gone.pid), env=worker_environment(), check=False)
    assert done.returncode == 2 and not job.events.exists() and time.monotonic() - begun < 20


def test_the_token_of_the_hub_reaches_the_worker(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:1")
    environment = worker_environment()
    assert environment["HF_TOKEN"] == "secret" and "PYTORCH_CUDA_ALLOC_CONF" not in environment
    assert environment["GOMP_SPINCOUNT"] == "0"


@pytest.mark.parametrize(
    ("release", "wsl"), [("5.15.167.4-microsoft-standard-WSL2", True), ("6.8.0-45-generic", False)]
)
def test_expandable_segments_are_left_alone_under_wsl(monkeypatch, release, wsl):
    monkeypatch.setattr("platform.release", lambda: release)
    assert runs_under_wsl() is wsl
    if sys.platform == "linux":
        monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
        assert ("PYTORCH_ALLOC_CONF" in worker_environment()) is not wsl


def test_expandable_segments_are_left_alone_under_windows(monkeypatch):
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    assert "PYTORCH_ALLOC_CONF" not in worker_environment()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (StudioError("Wrong.", "Mend it."), "Wrong."),
        (StudioError.of([Problem("One."), Problem("Two."), Problem("Three.")]), "One. (and 2 more)"),
        (OSError(errno.ENOSPC, "No space", "/x/y"), "/x/y: This cannot be written: the disk is full."),
        (
            OSError(errno.EIO, "Input/output error"),
            "Something unexpected went wrong: OSError: [Errno 5] Input/output error",
        ),
        (ValueError("odd"), "Something unexpected went wrong: ValueError: odd"),
    ],
    ids=["a mistake", "several", "a full disk", "another error of the system", "a surprise"],
)
def test_what_a_job_raises_becomes_its_last_event(tmp_path, error, message):
    job = create_job(tmp_path, "one", TrainRequest())
    failed = failure(error, job)
    assert failed.message == message


def test_a_worker_sees_only_the_card_it_was_given(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "CUDA_VISIBLE_DEVICES" not in worker_environment()
    assert worker_environment("GPU-1234")["CUDA_VISIBLE_DEVICES"] == "GPU-1234"


GUARDED = """
import os, sys, time
from pathlib import Path
import qlora_studio.worker.__main__ as worker
from qlora_studio.core import events as ev
def work(context):
    context.emit(ev.JobStarted(job="doctor"))
    while context.pending_request() != "stop":
        time.sleep(0.01)
    context.emit(ev.Stopped())
    return ev.Stopped()
worker.work = work
if "--inner" not in sys.argv:
    worker.inner_command = lambda folder, guard: [sys.executable, sys.argv[0], str(folder.path), "--inner", str(guard)]
sys.exit(worker.main(sys.argv))
"""
"""The real door, guard and worker, whose work is to wait for a stop."""


@pytest.mark.parametrize("wait_seconds", mostly_slow([0.0, 0.3, 1.0], 0.3))
def test_a_worker_whose_guard_is_killed_ends_by_itself(tmp_path, wait_seconds):
    job = create_job(tmp_path / "jobs", "look", DoctorRequest())
    script = tmp_path / "guarded.py"
    script.write_text(GUARDED)
    guard = subprocess.Popen([sys.executable, str(script), str(job.path)], env=worker_environment())
    until = time.monotonic() + 20
    while not job.worker_lives() and time.monotonic() < until:
        time.sleep(0.005)
    time.sleep(wait_seconds)
    guard.kill()
    guard.wait()
    assert not job.worker_lives()
    inner = job.path / "inner.lock"
    while (processes_of(script) or is_held(inner)) and time.monotonic() < until:  # a process that ends has no name
        time.sleep(0.05)
    assert processes_of(script) == [] and not is_held(inner)


def processes_of(script: Path) -> list[int]:
    return [one.pid for one in psutil.process_iter(["cmdline"]) if str(script) in (one.info["cmdline"] or [])]


@pytest.mark.skipif(os.name == "nt", reason="no such signals")
@pytest.mark.parametrize("name", mostly_slow(["SIGTERM", "SIGINT", "SIGHUP"], "SIGTERM"))
def test_a_stop_by_signal_reaches_the_worker_through_its_guard(tmp_path, name):
    job = create_job(tmp_path / "jobs", "look", DoctorRequest())
    script = tmp_path / "guarded.py"
    script.write_text(GUARDED)
    guard = subprocess.Popen([sys.executable, str(script), str(job.path)], env=worker_environment())
    until = time.monotonic() + 20
    while not (job.events.exists() and "started" in job.events.read_text()) and time.monotonic() < until:
        time.sleep(0.02)
    guard.send_signal(getattr(signal, name))
    assert guard.wait(20) == 0
    assert [json.loads(line)["event"] for line in job.events.read_text().splitlines()] == ["started", "stopped"]


DEAF = """
import json, os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[-1])
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with (folder / "events.jsonl").open("a") as file:
    file.write(json.dumps({"event": "started", "job": "train", "pid": os.getpid()}) + "\\n")
time.sleep(600)
"""
"""A worker that hears no stop."""


def test_a_worker_that_does_not_answer_is_ended_and_how_it_ended_is_said(tmp_path):
    (folder,) = [create_job(tmp_path / "runs", "deaf", TrainRequest())]
    guard = subprocess.Popen([sys.executable, "-c", AROUND, str(folder.path), DEAF])
    try:
        until(lambda: folder.worker_lives() and folder.events.exists() and folder.events.stat().st_size)
        folder.ask("stop")
        assert guard.poll() is None and supervisor.end_now(folder)
        assert guard.wait(20) == 1
    finally:
        guard.kill()
    follower = Follower(folder.events)
    follower.read()
    assert follower.progress.message == "The worker exited unexpectedly (signal 9)."
    assert not supervisor.end_now(folder), "there is none any more"


def test_a_process_that_only_has_the_number_of_a_worker_is_left_alone(tmp_path):
    (folder,) = [create_job(tmp_path / "runs", "one", TrainRequest())]
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    journal = Journal(folder.events)
    journal.append(JobStarted(job="train", pid=other.pid))
    journal.close()
    try:
        with held(folder.lock_file):
            assert not supervisor.end_now(folder)
        assert other.poll() is None
    finally:
        other.kill()


AROUND = """
import sys
from pathlib import Path
from qlora_studio.runs.folder import JobFolder
from qlora_studio.runs.lock import ProcessLock
from qlora_studio.worker.guard import guard
folder = JobFolder(Path(sys.argv[1]))
lock = ProcessLock(folder.lock_file)
assert lock.acquire()
sys.exit(guard(folder, [sys.executable, "-c", sys.argv[2], str(folder.path)]))
"""
"""The real guard around a worker of its own."""


def until(true, seconds=30):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    assert true()
