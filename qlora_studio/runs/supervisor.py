"""Starting, watching and stopping workers. A worker is a process of its own: it outlives the page and the terminal."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from qlora_studio.core.errors import StudioError
from qlora_studio.core.events import Event, Failed, JobStarted
from qlora_studio.runs.folder import JobFolder
from qlora_studio.runs.journal import Follower
from qlora_studio.runs.lock import is_held, read_words

START_SECONDS = 30
"""How long a worker may take from its start to its first event: only Python itself stands in between."""
LEAVE_SECONDS = 20
"""How long a worker may take to give its memory back after its last event."""
POLL_SECONDS = 0.15
REMOVED = ("PYTORCH_CUDA_ALLOC_CONF",)
"""The old name of PYTORCH_ALLOC_CONF, which would contradict what is set here."""
BUSY = 3
"""Exit code of a guard that found another training at work."""


class TrainingBusy(StudioError):
    """Another training is at work in this home."""


def runs_of(folder: JobFolder) -> Path:
    """The folder of runs whose card a job wants: a search for a learning rate lies in `cache/rates` of the same home."""
    parent = folder.path.parent
    return parent.parent.parent / "runs" if parent.name == "rates" else parent


def training_lock(folder: JobFolder) -> Path:
    """The lock that every training of a home must hold, a search for a learning rate too: one card, one training."""
    return runs_of(folder) / ".training.lock"


def worker_environment(card: str | None = None) -> dict[str, str]:
    """What must stand in the environment before the worker imports torch.

    `card` is the UUID of the only card it shall see: the driver and CUDA count several in different orders.
    """
    environment = {name: value for name, value in os.environ.items() if name not in REMOVED}
    environment |= {
        "GOMP_SPINCOUNT": "0",  # libgomp's threads would spin between operations and starve each other
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DO_NOT_TRACK": "1",
        "TORCHDYNAMO_DISABLE": "1",  # nothing here is compiled, and bitsandbytes would import a compiler at every start
        "USE_HUB_KERNELS": "0",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
    }
    if card is not None:
        environment["CUDA_VISIBLE_DEVICES"] = card
    # `python app.py` in a checkout works without an installation: the worker must find the same package.
    places = [str(Path(__file__).resolve().parents[2]), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(place for place in places if place)
    if sys.platform == "linux" and not runs_under_wsl():
        environment["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    return environment


def runs_under_wsl() -> bool:
    """Whether this Linux runs inside Windows, where expandable segments fail (pytorch issue 192330)."""
    return "microsoft" in platform.release().lower()


def worker_command(folder: JobFolder) -> list[str]:
    return [sys.executable, "-m", "qlora_studio.worker", str(folder.path)]


def detached() -> dict[str, object]:
    """Popen arguments that keep a worker out of the terminal's Ctrl-C and alive after its parent."""
    if os.name == "nt":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}  # type: ignore[attr-defined]
    return {"start_new_session": True}


def start(folder: JobFolder, command: list[str] | None = None, *, card: str | None = None) -> None:
    """Starts the worker of a job folder, or another `command` in its place, and returns once it has said so.

    `card` is the UUID of the card it works on, where there are several.

    Raises a StudioError where it does not, and `TrainingBusy` where another training is at work in this home.
    """
    written_bytes = folder.events.stat().st_size if folder.events.exists() else 0
    with folder.log.open("ab") as log:
        process = subprocess.Popen(
            command or worker_command(folder),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=worker_environment(card),
            cwd=folder.path,
            **detached(),  # type: ignore[call-overload]
        )
    wait_for_word(folder, process, written_bytes)


def wait_for_word(folder: JobFolder, process: subprocess.Popen[bytes], written_bytes: int) -> None:
    """Returns once the journal has grown past `written_bytes`: the worker holds its lock and has begun."""
    until = time.monotonic() + START_SECONDS
    while not (folder.events.exists() and folder.events.stat().st_size > written_bytes):
        if process.poll() == BUSY:
            here = is_held(training_lock(folder))
            holder = f"The run '{read_words(training_lock(folder))}'" if here else last_line(folder.log).rstrip(".")
            raise TrainingBusy(
                f"{holder} is still at work, and two trainings would not fit the plan of either.",
                "Wait for it, or stop it first.",
            )
        if process.poll() is not None:
            raise StudioError("The worker did not start.", f"Its log is {folder.log}: {last_line(folder.log)}")
        if time.monotonic() > until:
            process.kill()
            raise StudioError(f"The worker did not start within {START_SECONDS} s.", f"Its log is {folder.log}.")
        time.sleep(0.02)


def watch(folder: JobFolder) -> Iterator[Event]:
    """Events of a job until it is over, the past ones first. A worker that vanished ends in `Failed`."""
    follower = Follower(folder.events)
    while True:
        lives = folder.worker_lives()
        yield from follower.read()
        if follower.progress.ended:
            return
        if not lives and (follower.progress.job or folder.was_seen()):
            yield Failed(**dict(zip(("message", "hint"), explain_death(folder), strict=True)))
            return
        time.sleep(POLL_SECONDS)


def explain_death(folder: JobFolder) -> tuple[str, str]:
    """Message and hint for a worker that is gone without a last event."""
    return (
        "The worker was ended from outside, by the system or by a person.",
        f"If memory ran out, choose a smaller budget or shorter rows. Its log is {folder.log}.",
    )


def stop(folder: JobFolder) -> None:
    """Asks a job to stop after the step it is in, with its adapter saved."""
    folder.ask("stop")


def end_now(folder: JobFolder) -> bool:
    """Ends the process that works on a folder, whatever it is doing; its guard writes down how it ended.

    False where none is at work. The process must be the one that the journal names and must have been started for this
    folder: a number alone may be somebody else's by now.
    """
    if not folder.worker_lives():
        return False
    started = [event for event in Follower(folder.events).read() if isinstance(event, JobStarted)]
    if not started:
        return False
    try:
        process = psutil.Process(started[-1].pid)
        if str(folder.path) not in process.cmdline():
            return False
        process.kill()
    except psutil.Error:
        return False
    return True


def find_training(runs: Path) -> str | None:
    """The name of the run that is training in this folder of runs; one that has said its last word may still leave."""
    lock = runs / ".training.lock"
    until = time.monotonic() + LEAVE_SECONDS
    while is_held(lock):
        name = read_words(lock)
        follower = Follower(JobFolder(runs / name).events)
        follower.read()
        if not follower.progress.ended or time.monotonic() > until:
            return name or "of another window"
        time.sleep(POLL_SECONDS)
    return None


def clear_requests(folder: JobFolder) -> None:
    """Forgets what was asked of an earlier worker."""
    for request in folder.control.glob("*"):
        request.unlink(missing_ok=True)


def last_line(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""
