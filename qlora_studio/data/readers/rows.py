"""A row as a file holds it, before anybody knows its format. Readers yield these, or a problem in their place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qlora_studio.core.errors import Problem

MAX_LINE_BYTES = 16 << 20
"""Longest line or row: far above any training row, far below what hurts."""
MAX_DEPTH = 64
"""Deepest nesting of a row."""


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a file, and the line where it begins (1 is the first)."""

    file: str
    line: int
    values: dict[str, Any]


RowOrProblem = Row | Problem
