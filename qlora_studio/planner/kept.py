"""Small JSON files in the cache that remember measurements by machine; written whole, and a broken one is forgotten."""

from __future__ import annotations

import json
import os
from pathlib import Path

from qlora_studio.core.plan import GpuInfo


def machine_key(card: GpuInfo | None) -> str:
    """What a card's measurements are kept under; `cpu` where there is none."""
    return "cpu" if card is None else (card.uuid or f"{card.name} {card.total_bytes}")


def read_kept(path: Path) -> dict[str, object]:
    """What is kept; nothing where the file is missing or broken."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def write_kept(path: Path, values: dict[str, object]) -> None:
    """Writes the file whole or not at all."""
    write_whole(path, json.dumps(values, indent=1).encode())


def write_whole(path: Path, content: bytes) -> None:
    """Writes bytes under a temporary name, flushes them and renames; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
