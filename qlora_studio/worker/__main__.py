"""`python -m qlora_studio.worker FOLDER`: takes the folder's lock, does its job, writes exactly one last event."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from qlora_studio.core import events as ev
from qlora_studio.core.errors import StudioError
from qlora_studio.runs.folder import JobFolder
from qlora_studio.runs.journal import Journal
from qlora_studio.worker.context import Context
from qlora_studio.worker.guard import guard, inner_command

JOBS = ("train", "evaluate", "export", "chat", "tokenise", "doctor")
LOCK_SECONDS = 10
ORPHAN_SECONDS = 300
"""How long a worker waits for one whose guard was killed: that one ends after the step it is in."""


def main(arguments: list[str]) -> int:
    """Exit code 0 when the job finished or was stopped, 1 when it failed, 2 when it could not begin.

    The process that is started holds the lock and guards; with `--inner` it is the one that works.
    """
    os.umask(0o077)
    folder = JobFolder(Path(arguments[1]).resolve())
    if arguments[2:] == ["--inner"]:
        with FileLock(folder.path / "inner.lock").acquire(timeout=ORPHAN_SECONDS):
            return do(folder)
    try:
        with FileLock(folder.lock_file).acquire(timeout=LOCK_SECONDS):
            return guard(folder, inner_command(folder))
    except Timeout:
        print(f"Another worker holds {folder.lock_file}.", file=sys.stderr)  # noqa: T201 (the log, not a screen)
        return 2


def do(folder: JobFolder) -> int:
    """Does the folder's job in this process, with its journal open and its signals heard."""
    journal = Journal(folder.events)
    context = Context(folder, journal.append)

    def request_stop(number: int, frame: FrameType | None) -> None:
        context.stopped = True

    signal.signal(signal.SIGTERM, request_stop)
    signal.signal(signal.SIGINT, request_stop)
    try:
        last = work(context)
    finally:
        journal.close()
    return 1 if isinstance(last, ev.Failed) else 0


def work(context: Context) -> ev.Event:
    """Does the job and returns its last event, already written. The only place where any exception is caught."""
    try:
        job = str(context.folder.read_job()["job"])
        if job not in JOBS:
            raise StudioError(f"There is no job '{job}'.", where=str(context.folder.job_file))
        context.emit(ev.JobStarted(job=job, pid=os.getpid()))
        module = importlib.import_module(f"qlora_studio.worker.{job}")
        last: ev.Event = module.run(context)
    except StudioError as error:
        traceback.print_exc()
        more = f" (and {len(error.problems) - 1} more)" if len(error.problems) > 1 else ""
        last = ev.Failed(message=error.message + more, hint=error.hint)
    except Exception as error:
        traceback.print_exc()
        last = ev.Failed(
            message=f"Something unexpected went wrong: {type(error).__name__}: {error}",
            hint=f"The whole story is in {context.folder.log}.",
        )
    context.emit(last)
    return last


if __name__ == "__main__":
    sys.exit(main(sys.argv))
