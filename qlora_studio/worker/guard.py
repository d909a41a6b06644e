"""The light process around a worker: holds the folder's lock, and answers for a child that exits unexpectedly.

A child that the kernel ended because memory ran out is started again with smaller limits; it goes on from its newest
checkpoint and computes what is missing as it would have been. Any other death is written down as what it was.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from qlora_studio.core import events as ev
from qlora_studio.core.jobs import TrainRequest
from qlora_studio.core.plan import GIB
from qlora_studio.runs.folder import JobFolder, read_json, write_json
from qlora_studio.runs.journal import Follower, Journal

VMSTAT = Path("/proc/vmstat")
MOST_STALLED = 8
"""Restarts in a row that brought no step: more than the ladder has rungs for the usual plan."""
KILLED = -9
STOPPING = (signal.SIGTERM, signal.SIGINT, *((signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()))
"""What a worker takes for a stop: asked to end, Ctrl-C, and a terminal or session that closes."""
LIMITS = "limits.json"


def guard(folder: JobFolder, command: list[str], kills: Callable[[], int] | None = None) -> int:
    """Runs `command` as the worker of this folder; its exit code, or 1 where it died.

    `kills` counts the processes that the kernel has ended for want of memory since it started.
    """
    count = kills or count_memory_kills
    stalled, furthest = 0, -1
    while True:
        before = count()
        code = run_child(command)
        follower = Follower(folder.events)
        follower.read()
        if follower.progress.ended or code == 2:
            return code
        ran_out = code == KILLED and count() > before
        step = follower.progress.step
        stalled, furthest = (0, step) if step > furthest else (stalled + 1, furthest)
        can_shrink = ran_out and stalled < MOST_STALLED and isinstance(folder.read_job().request, TrainRequest)
        if not can_shrink:
            append(folder, explain(folder, code, ran_out, follower.progress.peak_bytes))
            return 1
        shrink(folder, step + 1)


def run_child(command: list[str]) -> int:
    """Runs the child and passes signals on to it. Standard input and output are inherited."""
    process = subprocess.Popen(command)

    def forward(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in STOPPING}
    try:
        return process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def count_memory_kills() -> int:
    """Processes the kernel has ended because memory ran out, since the machine started; 0 where it does not say."""
    try:
        lines = VMSTAT.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def count_rungs(folder: JobFolder) -> int:
    """How many rungs down the out-of-memory ladder the next child begins."""
    file = folder.path / LIMITS
    return int(read_json(file).get("rungs", 0)) if file.exists() else 0


def shrink(folder: JobFolder, step: int) -> None:
    """Notes that the next child must begin one rung further down the out-of-memory ladder, and says so."""
    write_json(folder.path / LIMITS, {"rungs": count_rungs(folder) + 1})
    append(
        folder,
        ev.Noted(
            text=f"The system ended the worker in step {step} because memory ran out. "
            "It resumes from its last checkpoint with a smaller micro-batch or more gradient checkpointing."
        ),
    )


def explain(folder: JobFolder, code: int, ran_out: bool, peak_bytes: int = 0) -> ev.Failed:
    """The last event of a child that wrote none; `peak_bytes` is the most it was measured to hold."""
    if ran_out:
        measured = f" It held {peak_bytes / GIB:.1f} GiB at most." if peak_bytes else ""
        return ev.Failed(
            message=f"The system ended the worker because the computer's memory ran out.{measured}",
            hint="Close other programs, or choose a smaller model, rank or row length.",
        )
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    hint = f"Its log is {folder.log}. A training can go on: `qlora-studio runs resume {folder.name}`."
    return ev.Failed(message=f"The worker exited unexpectedly ({how}).", hint=hint)


def append(folder: JobFolder, event: ev.Event) -> None:
    journal = Journal(folder.events)
    journal.append(event)
    journal.close()


def inner_command(folder: JobFolder, guard_process: int) -> list[str]:
    """The command of the process that works: it is told who guards it, and ends when that is no longer its parent."""
    return [sys.executable, "-m", "qlora_studio.worker", str(folder.path), "--inner", str(guard_process)]
