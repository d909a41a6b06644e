"""Starting, watching and stopping workers. A worker is a process of its own: it outlives the page and the terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from qlora_studio.core.errors import StudioError
from qlora_studio.core.events import Event, Failed
from qlora_studio.runs.folder import JobFolder
from qlora_studio.runs.journal import Follower

START_SECONDS = 30
"""How long a worker may take from its start to its first event: only Python itself stands in between."""
LEAVE_SECONDS = 20
"""How long a worker may take to give its memory back after its last event."""
POLL_SECONDS = 0.15
REMOVED = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "PYTORCH_CUDA_ALLOC_CONF")


def worker_environment() -> dict[str, str]:
    """What must stand in the environment before the worker imports torch."""
    environment = {name: value for name, value in os.environ.items() if name not in REMOVED}
    environment |= {
        "GOMP_SPINCOUNT": "0",  # libgomp's threads would spin between operations and starve each other
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DO_NOT_TRACK": "1",
        "USE_HUB_KERNELS": "0",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
    }
    # `python app.py` in a checkout works without an installation: the worker must find the same package.
    places = [str(Path(__file__).resolve().parents[2]), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(place for place in places if place)
    if sys.platform == "linux":
        environment["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    return environment


def worker_command(folder: JobFolder) -> list[str]:
    return [sys.executable, "-m", "qlora_studio.worker", str(folder.path)]


def detached() -> dict[str, object]:
    """Popen arguments that keep a worker out of the terminal's Ctrl-C and alive after its parent."""
    if os.name == "nt":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}  # type: ignore[attr-defined]
    return {"start_new_session": True}


def start(folder: JobFolder) -> None:
    """Starts the worker of a job folder and returns once it has said so. Raises a StudioError where it does not."""
    said = folder.events.stat().st_size if folder.events.exists() else 0
    with folder.log.open("ab") as log:
        process = subprocess.Popen(
            worker_command(folder),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=worker_environment(),
            cwd=folder.path,
            **detached(),  # type: ignore[call-overload]
        )
    wait_for_word(folder, process, said)


def wait_for_word(folder: JobFolder, process: subprocess.Popen[bytes], said: int) -> None:
    """Returns once the journal has grown past the `said` bytes: the worker holds its lock and has begun."""
    until = time.monotonic() + START_SECONDS
    while not (folder.events.exists() and folder.events.stat().st_size > said):
        if process.poll() is not None:
            raise StudioError("The worker did not start.", f"Its log is {folder.log}: {last_line(folder.log)}")
        if time.monotonic() > until:
            process.kill()
            raise StudioError(f"The worker did not start within {START_SECONDS} s.", f"Its log is {folder.log}.")
        time.sleep(0.02)


def watch(folder: JobFolder) -> Iterator[Event]:
    """Events of a job until it is over, the past ones first. A worker that died without a word ends in `Failed`."""
    follower = Follower(folder.events)
    while True:
        lives = folder.worker_lives()
        yield from follower.read()
        if follower.progress.ended:
            return
        if not lives:
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


def is_at_work(folder: JobFolder) -> bool:
    """Whether a worker lives and has not said its last word; one that has is given a moment to leave."""
    if not folder.worker_lives():
        return False
    follower = Follower(folder.events)
    follower.read()
    until = time.monotonic() + LEAVE_SECONDS
    while follower.progress.ended and folder.worker_lives() and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
    return folder.worker_lives()


def clear_requests(folder: JobFolder) -> None:
    """Forgets what was asked of an earlier worker."""
    for request in folder.control.glob("*"):
        request.unlink(missing_ok=True)


def end(folder: JobFolder, patience_seconds: float = 30) -> None:
    """Ends a worker that does not answer: asks, then terminates, then kills its process and children."""
    stop(folder)
    until = time.monotonic() + patience_seconds
    while folder.worker_lives() and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
    for number in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        if not folder.worker_lives():
            return
        for process in worker_processes(folder):
            process.send_signal(number)
        time.sleep(2)


def worker_processes(folder: JobFolder) -> list[psutil.Process]:
    """The guard and worker processes of this folder, by command line: safe against a process number used again."""
    command = worker_command(folder)[1:]
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [])[1 : len(command) + 1] == command:
            found.append(process)
    return found


def last_line(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""
