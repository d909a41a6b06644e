"""The computer's own memory: cheap enough for every tick."""

from __future__ import annotations

import psutil

from qlora_studio.ui.views.side import Memory


def read_memory() -> Memory:
    """What is used of it at this moment."""
    memory = psutil.virtual_memory()
    return Memory(int(memory.total - memory.available), int(memory.total))
