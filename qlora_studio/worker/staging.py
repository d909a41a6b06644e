"""A place beside an export's target where it is written out of sight, so that the target appears whole or not at all.

Each export has a place of its own, held by a lock that dies with its process. What a killed one left is swept by the next.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qlora_studio.core.errors import StudioError
from qlora_studio.engine.manifest import sync
from qlora_studio.runs.lock import ProcessLock, is_held


@dataclass(frozen=True, slots=True)
class Stage:
    """Where an export is written until it is done."""

    target: Path
    place: Path

    @property
    def files(self) -> Path:
        """The folder that becomes the target."""
        return self.place / "files"

    def publish(self) -> None:
        """Puts the files on the disk and gives them the target's name. Raises a StudioError where that was taken."""
        for path in (*self.files.rglob("*"), self.files):
            sync(path)
        try:
            if self.target.exists():
                self.target.rmdir()  # empty, or it is somebody's and stays
            self.files.rename(self.target)
        except OSError:
            if not self.target.exists():
                raise
            raise StudioError(
                "This folder was filled by somebody else meanwhile, and an export never mixes with what is there.",
                "Export again, into a new folder.",
                where=str(self.target),
            ) from None
        sync(self.target.parent)


@contextmanager
def staged(target: Path, job: str) -> Iterator[Stage]:
    """A stage for this target, gone afterwards. Raises a StudioError while another export is written to the same place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target)
    place = target.parent / f".{target.name}.{job}.part"
    place.mkdir()
    lock = ProcessLock(place / "lock")
    try:
        lock.acquire()
        (place / "files").mkdir()
        yield Stage(target, place)
    finally:
        lock.release()
        shutil.rmtree(place, ignore_errors=True)


def sweep(target: Path) -> None:
    """Removes what killed exports left beside this target. Raises a StudioError where one is still being written."""
    for place in target.parent.glob(f".{_literally(target.name)}.*.part"):
        if place.is_symlink() or not (place / "lock").exists() or not (place / "files").is_dir():
            continue  # not made here
        if is_held(place / "lock"):
            raise StudioError(
                "Another export is being written to this folder.", "Wait for it, or name another.", where=str(target)
            )
        shutil.rmtree(place, ignore_errors=True)


def _literally(name: str) -> str:
    """A glob pattern that matches just this name."""
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in name)
