"""Workers that start, stay silent, die at once, talk, and are asked to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from qlora_studio.core import events as ev
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import DoctorRequest
from qlora_studio.runs import supervisor
from qlora_studio.runs.folder import create_job
from qlora_studio.runs.journal import Journal
from qlora_studio.runs.lock import ProcessLock
from qlora_studio.runs.store import RunStore
from tests.matrix import mostly_slow
from tests.runs.holders import held

WORKER = """
import sys, time
from pathlib import Path
from qlora_studio.core import events as ev
from qlora_studio.runs.folder import JobFolder
from qlora_studio.runs.journal import Journal
from qlora_studio.runs.lock import ProcessLock
folder = JobFolder(Path(sys.argv[1]))
ProcessLock(folder.lock_file).acquire()
journal = Journal(folder.events)
journal.append(ev.JobStarted(job="doctor"))
until = time.monotonic() + 20
while not folder.is_requested("stop") and time.monotonic() < until:
    time.sleep(0.01)
journal.append(ev.Stopped(step=4))
"""
"""Holds the lock, says that it has begun, and ends when it is asked to."""


@pytest.fixture
def job(tmp_path):
    return create_job(tmp_path, "one", DoctorRequest())


def test_a_start_returns_once_the_worker_has_begun_and_a_stop_reaches_it(job):
    supervisor.start(job, [sys.executable, "-c", WORKER, str(job.path)])
    assert job.worker_lives() and job.was_seen()
    seen: list[ev.Event] = []
    watching = threading.Thread(target=lambda: seen.extend(supervisor.watch(job)))
    watching.start()
    supervisor.stop(job)
    watching.join(10)
    assert seen == [ev.JobStarted(job="doctor"), ev.Stopped(step=4)]
    assert (job.control / "stop").exists()
    supervisor.clear_requests(job)
    assert not job.is_requested("stop")


def test_a_worker_that_ends_before_its_first_word_is_said_to_have_not_started(job):
    with pytest.raises(StudioError) as failed:
        supervisor.start(
            job, [sys.executable, "-c", "import sys; print('no such thing', file=sys.stderr); sys.exit(1)"]
        )
    assert failed.value.message == "The worker did not start." and "no such thing" in failed.value.hint


def test_a_worker_that_stays_silent_is_ended(job, monkeypatch):
    monkeypatch.setattr(supervisor, "START_SECONDS", 0.5)
    begun = time.monotonic()
    with pytest.raises(StudioError, match=r"The worker did not start within 0\.5 s"):
        supervisor.start(job, [sys.executable, "-c", "import time; time.sleep(60)"])
    assert time.monotonic() - begun < 10


def test_words_of_an_earlier_worker_are_not_taken_for_the_new_ones(job):
    journal = Journal(job.events)
    journal.append(ev.JobStarted(job="doctor"))
    journal.close()
    with pytest.raises(StudioError, match="did not start"):
        supervisor.start(job, [sys.executable, "-c", ""])


def test_watching_a_job_whose_worker_vanished_ends_in_a_sentence(job):
    with held(job.lock_file):
        journal = Journal(job.events)
        journal.append(ev.JobStarted(job="doctor"))
        journal.close()
    *_, last = supervisor.watch(job)
    assert isinstance(last, ev.Failed) and "ended from outside" in last.message and str(job.log) in last.hint


STARTER = """
import signal, sys, time
for name in (signal.SIGINT, signal.SIGHUP):  # under nohup and in a background job they arrive ignored
    signal.signal(name, signal.SIG_DFL)
from pathlib import Path
from qlora_studio.runs import supervisor
from qlora_studio.runs.folder import JobFolder
supervisor.start(JobFolder(Path(sys.argv[1])), [sys.executable, "-c", sys.argv[2], sys.argv[1]])
print("begun", flush=True)
time.sleep(60)
"""
"""A page or a command line that starts a worker and stays open."""


@pytest.mark.skipif(os.name == "nt", reason="no process groups to send signals to")
@pytest.mark.parametrize("name", mostly_slow(["SIGKILL", "SIGINT", "SIGHUP"], "SIGKILL"))
def test_a_worker_lives_on_when_all_that_started_it_is_ended_and_the_next_look_finds_it(job, name):
    command = [sys.executable, "-c", STARTER, str(job.path), WORKER]
    starter = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert starter.stdout is not None and starter.stdout.readline() == "begun\n"
    os.killpg(starter.pid, getattr(signal, name))
    starter.communicate()
    assert RunStore(job.path.parent).look(job).state == "running"
    supervisor.stop(job)
    *_, last = supervisor.watch(job)
    assert last == ev.Stopped(step=4), "what a fresh look follows to its end"


def test_a_training_that_is_leaving_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "LEAVE_SECONDS", 5)
    job = create_job(tmp_path, "one", DoctorRequest())
    with held(supervisor.training_lock(job), "one") as process:
        assert supervisor.find_training(tmp_path) == "one"
        journal = Journal(job.events)
        journal.append(ev.Finished())
        journal.close()
        threading.Timer(0.5, process.kill).start()
        assert supervisor.find_training(tmp_path) is None


def test_a_worker_finds_this_program_and_keeps_what_the_person_set(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    own, _, rest = supervisor.worker_environment()["PYTHONPATH"].partition(os.pathsep)
    assert rest == "/somewhere" and (Path(own) / "qlora_studio" / "__init__.py").is_file()


def test_the_last_line_of_a_log(tmp_path):
    log = tmp_path / "worker.log"
    assert supervisor.last_line(log) == ""
    log.write_bytes(b"first\nsecond \xff\n\n")
    assert supervisor.last_line(log) == "second \ufffd"


def test_a_lock_of_another_folder_says_nothing_here(job, tmp_path):
    other = create_job(tmp_path, "two", DoctorRequest())
    assert ProcessLock(other.path / "x.lock").acquire()
    with held(other.lock_file):
        assert other.worker_lives() and not job.worker_lives()
