"""`python -m qlora_studio.worker FOLDER`: takes the folder's lock, does its job, writes exactly one last event."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType

from qlora_studio.core import events as ev
from qlora_studio.core.errors import StudioError, explain_unwritable
from qlora_studio.planner.machine import read_cards
from qlora_studio.runs.folder import JobFolder
from qlora_studio.runs.journal import Follower, Journal
from qlora_studio.runs.lock import ProcessLock, read_words
from qlora_studio.runs.queue import waiting
from qlora_studio.runs.supervisor import BUSY, runs_of
from qlora_studio.worker.context import Context
from qlora_studio.worker.guard import STOPPING, guard, inner_command
from qlora_studio.worker.locks import needed_locks, trains

LOCK_SECONDS = 10
LEAVE_LOCK_SECONDS = 2
"""How long a training waits for one that is leaving."""
ORPHAN_SECONDS = 300
"""How long a worker waits for one whose guard was killed: that one ends after the step it is in."""


def main(arguments: list[str]) -> int:
    """Exit code 0 when the job finished or was stopped, 1 when it failed, 2 when it could not begin, 3 when busy.

    The process that is started holds the locks and guards; with `--inner GUARD` it is the one that works, for as long
    as the process of that number is its parent.
    """
    os.umask(0o077)
    folder = JobFolder(Path(arguments[1]).resolve())
    if arguments[2:3] == ["--inner"]:
        return work_alone(folder, int(arguments[3]))
    try:
        request = folder.read_job().request
    except StudioError as error:
        print(error, file=sys.stderr)  # noqa: T201 (the log, not a screen)
        return 2
    held: list[ProcessLock] = []
    for lock in needed_locks(folder, request, own_card() if trains(request) else None):
        lock.path.parent.mkdir(parents=True, exist_ok=True)
        if not lock.acquire(LEAVE_LOCK_SECONDS):
            print(f"The run '{read_words(lock.path)}'", file=sys.stderr)  # noqa: T201 (the log, not a screen)
            return BUSY
        held.append(lock)
    own = ProcessLock(folder.lock_file)
    if not own.acquire(LOCK_SECONDS):
        print(f"Another worker holds {folder.lock_file}.", file=sys.stderr)  # noqa: T201 (the log, not a screen)
        return 2
    code = guard(folder, inner_command(folder, os.getpid()))
    if held:
        for lock in (own, *held):
            lock.release()
        start_next(folder)
    return code


def own_card() -> str | None:
    """The UUID of the card that this process would compute on; None where there is none."""
    cards = read_cards()
    return cards[0].uuid or f"number-{cards[0].index}" if cards else None


def start_next(folder: JobFolder) -> None:
    """Starts the run that waits behind this training. One that was paused keeps the card free: somebody wants it."""
    follower = Follower(folder.events)
    follower.read()
    if follower.progress.state == "paused" or not waiting(runs_of(folder)):
        return
    from qlora_studio.studio import Studio

    try:
        Studio().queue.start_next()
    except Exception:  # a queue that cannot go on must not make an ended run look failed
        traceback.print_exc()


def work_alone(folder: JobFolder, guard_process: int) -> int:
    """Does the job once no worker whose guard was killed is left: of this folder, or, for a training, of this home."""
    shared = trains(folder.read_job().request)
    place = runs_of(folder) / ".inner.lock" if shared else folder.path / "inner.lock"
    if not ProcessLock(place).acquire(ORPHAN_SECONDS):
        return 2
    if os.getppid() != guard_process:
        return 2  # the guard was killed before this process could look: nobody would watch it
    return do(folder, guard_process)


def do(folder: JobFolder, guard_process: int) -> int:
    """Does the folder's job in this process, with its journal open and its signals heard."""
    journal = Journal(folder.events)
    context = Context(folder, journal.append, guard_process, journal.catch_up, own_process=True)

    def request_stop(number: int, frame: FrameType | None) -> None:
        context.stopped = True

    for number in STOPPING:
        signal.signal(number, request_stop)
    try:
        last = work(context)
    finally:
        journal.close()
    return 1 if isinstance(last, ev.Failed) else 0


def work(context: Context) -> ev.Event:
    """Does the job and returns its last event, already written. The only place where any exception is caught."""
    try:
        job = context.folder.read_job().request.job
        context.emit(ev.JobStarted(job=job, pid=os.getpid()))
        module = importlib.import_module(f"qlora_studio.worker.{job}")
        last: ev.Event = module.run(context)
    except Exception as error:
        traceback.print_exc()
        last = failure(error, context.folder)
    context.emit(last)
    return last


def failure(error: Exception, folder: JobFolder) -> ev.Failed:
    """The last event of a job that raised this: a person's mistake as it stands, anything else with the way to the log."""
    if isinstance(error, OSError):
        error = explain_unwritable(error) or error
    if isinstance(error, StudioError):
        more = f" (and {len(error.problems) - 1} more)" if len(error.problems) > 1 else ""
        return ev.Failed(message=error.message + more, hint=error.hint)
    return ev.Failed(
        message=f"Something unexpected went wrong: {type(error).__name__}: {error}",
        hint=f"The whole story is in {folder.log}.",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv))
