"""The computer itself at one moment."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class Machine:
    """Sizes in bytes."""

    memory_used: int
    memory_total: int
    disk_free: int


def read_machine(folder: Path) -> Machine:
    """Memory, and the disk that `folder` lies on."""
    memory = psutil.virtual_memory()
    return Machine(memory.total - memory.available, memory.total, disk_free(folder))


def disk_free(path: Path) -> int:
    """Bytes free where a path is or will be."""
    there = next(place for place in (path, *path.parents) if place.exists())
    return shutil.disk_usage(there).free
