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

JOBS = ("train", "evaluate", "export", "chat", "tokenise", "doctor")
LOCK_SECONDS = 10


def main(arguments: list[str]) -> int:
    """Exit code 0 when the job finished or was stopped, 1 when it failed, 2 when it could not begin."""
    os.umask(0o077)
    folder = JobFolder(Path(arguments[1]).resolve())
    try:
        lock = FileLock(folder.lock_file)
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        print(f"Another worker holds {folder.lock_file}.", file=sys.stderr)  # noqa: T201 (the log, not a screen)
        return 2
    journal = Journal(folder.events)
    context = Context(folder, journal.append)

    def request_stop(number: int, frame: FrameType | None) -> None:
        context.stopped = True

    signal.signal(signal.SIGTERM, request_stop)
    signal.signal(signal.SIGINT, request_stop)
    try:
        last = work(context)
    finally:
        lock_is_last = journal
        lock_is_last.close()
    lock.release()
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
