"""A row as a file holds it, before anybody knows its format, and the count that no row can slip past."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from qlora_studio.core.errors import Problem

MAX_LINE_MB = 16
MAX_LINE_BYTES = MAX_LINE_MB << 20
"""Longest line or row: far above any training row, far below what hurts."""
MAX_DEPTH = 64
"""Deepest nesting of a row."""


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a file, and the line where it begins (1 is the first)."""

    file: str
    line: int
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Unseen:
    """A stretch of a source in which nobody knows how many rows stand. It cannot be left out, only mended."""

    problem: Problem


RowOrProblem = Row | Problem | Unseen
"""A problem stands for exactly one row that cannot be read."""


@dataclass(slots=True)
class Tally:
    """What the readers of one source have met. Each counts a record where it begins, before it makes anything of it."""

    rows: int = 0
    passed_over: list[str] = field(default_factory=list)
    """What is no data and was not read: `README.md: text beside tables`."""
    notes: list[str] = field(default_factory=list)
    """Choices a reader made, as sentences."""


def shown_name(name: str) -> str:
    """A file's name as text that can be printed and written, also where the file system's bytes are no UTF-8."""
    return os.fsencode(name).decode("utf-8", "replace")
