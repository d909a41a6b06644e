"""What a worker is started with, and the sentences for one that does not come, word by word; no process is started."""

import os
import subprocess
import sys
import types
from pathlib import Path

import psutil
import pytest

from qlora_studio.core import events as ev
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import TrainRequest
from qlora_studio.runs import supervisor
from qlora_studio.runs.folder import JobFolder, create_job
from qlora_studio.runs.journal import Journal
from tests.runs.holders import held

ROOT = Path(__file__).resolve().parents[2]
FIXED = {
    "GOMP_SPINCOUNT": "0", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1", "DO_NOT_TRACK": "1", "TORCHDYNAMO_DISABLE": "1", "USE_HUB_KERNELS": "0",
    "TRANSFORMERS_VERBOSITY": "error", "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8",
}  # fmt: skip


@pytest.fixture
def job(tmp_path) -> JobFolder:
    return create_job(tmp_path / "runs", "one", TrainRequest())


@pytest.fixture
def quick(monkeypatch):
    """A clock of its own: its times can be told, and no pause is slept."""
    clock = types.SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda seconds: None)
    monkeypatch.setattr(supervisor, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("system", "release", "segments"),
    [("linux", "6.1", True), ("linux", "5-Microsoft-WSL2", False), ("darwin", "23", False)],
)
def test_the_environment_of_a_worker(system, release, segments, monkeypatch):
    before = {"HOME": "/h", "PYTORCH_CUDA_ALLOC_CONF": "x", "GOMP_SPINCOUNT": "9"}
    monkeypatch.setattr(supervisor, "os", types.SimpleNamespace(environ=before, pathsep=os.pathsep))
    monkeypatch.setattr(supervisor, "sys", types.SimpleNamespace(platform=system))
    monkeypatch.setattr(supervisor, "platform", types.SimpleNamespace(release=lambda: release))
    allocator = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"} if segments else {}
    assert supervisor.worker_environment("GPU-1") == {
        "HOME": "/h", "CUDA_VISIBLE_DEVICES": "GPU-1", "PYTHONPATH": str(ROOT), **FIXED, **allocator,
    }  # fmt: skip


def test_a_start_hands_the_worker_its_folder_log_card_and_a_session_of_its_own(job, monkeypatch):
    started = {}

    def popen(command, **options):
        started.update(options, command=command)
        options["stdout"].write(b"said\n")
        Journal(job.events).append(ev.JobStarted(job="train"))
        return types.SimpleNamespace(poll=lambda: None)

    monkeypatch.setattr(supervisor.subprocess, "Popen", popen)
    job.log.write_text("before\n")
    supervisor.start(job, card="GPU-2")
    assert started["command"] == [sys.executable, "-m", "qlora_studio.worker", str(job.path)]
    assert job.log.read_text() == "before\nsaid\n" and started["stdout"] is started["stderr"]
    assert (started["stdin"], started["cwd"]) == (subprocess.DEVNULL, job.path)
    assert started["start_new_session"] is True and started["env"]["CUDA_VISIBLE_DEVICES"] == "GPU-2"
    supervisor.start(job, ["other"])
    assert started["command"] == ["other"]


class Process:
    """One that has ended with this code, or that never ends."""

    def __init__(self, code=None):
        self.code, self.killed = code, False

    def poll(self):
        return self.code

    def kill(self):
        self.killed = True


def refusal(call):
    with pytest.raises(StudioError) as refused:
        call()
    (problem,) = refused.value.problems
    return type(refused.value), problem.message, problem.hint


def test_a_worker_that_ended_or_stays_silent(job, quick):
    job.log.write_text("first\nlast words.\n")
    assert refusal(lambda: supervisor.wait_for_word(job, Process(1), 0)) == (
        StudioError, "The worker did not start.", f"Its log is {job.log}: last words.",
    )  # fmt: skip
    times = iter([0.0, 30.0, 30.5])
    quick.monotonic = lambda: next(times)
    silent = Process()
    assert refusal(lambda: supervisor.wait_for_word(job, silent, 0)) == (
        StudioError, "The worker did not start within 30 s.", f"Its log is {job.log}.",
    )  # fmt: skip
    assert silent.killed


def test_a_home_where_another_training_is_at_work(job, quick):
    wait = "Wait for it, or stop it first."
    job.log.write_text("The run 'two' of before.\n")
    assert refusal(lambda: supervisor.wait_for_word(job, Process(supervisor.BUSY), 0)) == (
        supervisor.TrainingBusy,
        "The run 'two' of before is still at work, and two trainings would not fit the plan of either.",
        wait,
    )
    with held(supervisor.training_lock(job), "three"):
        assert refusal(lambda: supervisor.wait_for_word(job, Process(supervisor.BUSY), 0))[1].startswith(
            "The run 'three' is still at work"
        )


def test_only_what_comes_after_the_start_is_the_workers_word(job, quick):
    Journal(job.events).append(ev.JobStarted(job="train"))
    size = job.events.stat().st_size
    assert refusal(lambda: supervisor.wait_for_word(job, Process(1), size))[1] == "The worker did not start."
    supervisor.wait_for_word(job, Process(1), size - 1)


def test_a_search_for_a_rate_takes_the_lock_of_the_runs_beside_it():
    home = Path("home")
    assert supervisor.training_lock(JobFolder(home / "runs" / "one")) == home / "runs" / ".training.lock"
    assert supervisor.training_lock(JobFolder(home / "cache" / "rates" / "x")) == home / "runs" / ".training.lock"


def test_what_is_said_of_a_worker_that_is_gone(job):
    assert supervisor.explain_death(job) == (
        "The worker was ended from outside, by the system or by a person.",
        f"If memory ran out, choose a smaller budget or shorter rows. Its log is {job.log}.",
    )


def test_watching_gives_what_comes_until_the_end(job, quick):
    journal = Journal(job.events)
    for event in (ev.JobStarted(job="train"), ev.PhaseEntered(phase="loading"), ev.Stopped(step=2)):
        journal.append(event)
    journal.close()
    assert [event.tag for event in supervisor.watch(job)] == ["started", "phase", "stopped"]


def test_a_process_is_ended_only_if_it_is_the_one_of_this_folder(job, monkeypatch):
    ended = []

    def process(number, folder):
        return types.SimpleNamespace(cmdline=lambda: ["python", folder], kill=lambda: ended.append(number))

    monkeypatch.setattr(supervisor.psutil, "Process", lambda number: process(number, str(job.path)))
    journal = Journal(job.events)
    assert not supervisor.end_now(job)  # nobody is at work
    with held(job.lock_file):
        assert not supervisor.end_now(job)  # and nobody has said a word
        journal.append(ev.JobStarted(job="train", pid=11))
        journal.append(ev.JobStarted(job="train", pid=12))
        assert supervisor.end_now(job) and ended == [12]
        monkeypatch.setattr(supervisor.psutil, "Process", lambda number: process(number, "elsewhere"))
        assert not supervisor.end_now(job)

        def gone(number):
            raise psutil.NoSuchProcess(number)

        monkeypatch.setattr(supervisor.psutil, "Process", gone)
        assert not supervisor.end_now(job)
    assert ended == [12] and not supervisor.end_now(job)


def test_requests_are_forgotten_and_one_that_is_gone_is_no_error(job):
    supervisor.clear_requests(job)
    job.ask("stop")
    job.ask("save")
    supervisor.stop(job)
    supervisor.clear_requests(job)
    assert list(job.control.iterdir()) == []
    supervisor.stop(job)
    assert job.is_requested("stop") and not job.is_requested("save")


def test_which_run_is_training(job, quick):
    runs = job.path.parent
    assert supervisor.find_training(runs) is None
    with held(supervisor.training_lock(job), "one"):
        assert supervisor.find_training(runs) == "one"
        journal = Journal(job.events)
        journal.append(ev.Stopped(step=1))
        times = iter([0.0, 19.0, 20.0, 20.5])
        quick.monotonic = lambda: next(times)
        assert supervisor.find_training(runs) == "one" and next(times, None) is None
    with held(supervisor.training_lock(job), ""):
        quick.monotonic = lambda: 0.0
        assert supervisor.find_training(runs) == "of another window"


def test_on_windows_a_worker_has_a_group_of_its_own_and_no_window(monkeypatch):
    monkeypatch.setattr(supervisor, "os", types.SimpleNamespace(name="nt"))
    for name, flag in (("CREATE_NEW_PROCESS_GROUP", 512), ("CREATE_NO_WINDOW", 1 << 27)):
        monkeypatch.setattr(supervisor.subprocess, name, flag, raising=False)
    assert supervisor.detached() == {"creationflags": 512 + (1 << 27)}
