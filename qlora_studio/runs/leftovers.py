"""What a kill leaves in a home outside of any run: half-made folders and trash, swept at the next start of anything.

Whoever makes a half-made folder writes its process into the name, so that one at work is told from one that is gone.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import psutil

HALF_MADE = re.compile(r"\.(?:new|import)-(\d+)-.+")


def sweep_leftovers(*rooms: Path) -> list[Path]:
    """Removes trash and the half-made folders of processes that are gone from these rooms; what was removed."""
    found = []
    for room in rooms:
        for path in room.glob(".*"):
            made = HALF_MADE.fullmatch(path.name)
            if path.name == ".trash" or (made and not psutil.pid_exists(int(made[1]))):
                shutil.rmtree(path, ignore_errors=True)
                found.append(path)
    return found
