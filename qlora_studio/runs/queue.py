"""The queue of trainings: run folders that wait, in an order, each marked by a file of its own.

There is no list that could contradict the folders, and no process that waits: whoever ends a training, or looks, takes
the next one. Two who look at once agree by a lock.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from qlora_studio.core.errors import StudioError
from qlora_studio.runs.folder import JobFolder, read_json, write_json
from qlora_studio.runs.lock import ProcessLock

LOCK = ".queue.lock"
LOCK_SECONDS = 60
"""How long one who looks waits for another who is starting a run: longer than a start may take."""


def waiting(runs: Path) -> list[JobFolder]:
    """The runs that wait, in their order."""
    found = []
    for file in runs.glob("[!.]*/queued.json"):
        with contextlib.suppress(StudioError):  # taken at this moment
            place = read_json(file).get("place")
            found.append((float(place) if isinstance(place, int | float) else 0.0, file.parent.name, file.parent))
    return [JobFolder(path) for _, _, path in sorted(found)]


def put(folder: JobFolder) -> None:
    """Has a run wait behind all others; one that waits already keeps its place."""
    line = waiting(folder.path.parent)
    if folder not in line:
        write_json(folder.queue_file, {"place": _place(line[-1]) + 1 if line else 1.0})


def take_out(folder: JobFolder) -> None:
    """Has a run wait no longer."""
    folder.queue_file.unlink(missing_ok=True)


def move(folder: JobFolder, position: int) -> None:
    """Puts a waiting run at this position, 1 for the next to start. Raises a StudioError for one that does not wait."""
    line = waiting(folder.path.parent)
    if folder not in line:
        raise StudioError(f"The run '{folder.name}' does not wait.", "`qlora-studio queue list` shows those that do.")
    line.remove(folder)
    line.insert(min(max(position, 1), len(line) + 1) - 1, folder)
    for place, one in enumerate(line, 1):
        write_json(one.queue_file, {"place": float(place)})


@contextlib.contextmanager
def alone(runs: Path) -> Iterator[bool]:
    """Whether nobody else starts runs of this queue for as long as the block takes."""
    runs.mkdir(parents=True, exist_ok=True)
    lock = ProcessLock(runs / LOCK)
    held = lock.acquire(LOCK_SECONDS)
    try:
        yield held
    finally:
        lock.release()


def _place(folder: JobFolder) -> float:
    return float(read_json(folder.queue_file)["place"])
