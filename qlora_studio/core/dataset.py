"""What is known about imported data: findings, the guessed format, the report of a set. Values only."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Severity = Literal["error", "warning", "note"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Finding(_Value):
    """Something in the data that a person should know before a run, with where it is and what mends it."""

    name: str
    """The finding's short name, by which it is accepted: `empty-answer`."""
    severity: Severity
    count: int
    message: str
    """What was found, as a sentence."""
    examples: tuple[str, ...] = ()
    """The first few places, `file:line` with a word on each."""
    hint: str = ""
    """What to do about it, as a sentence."""
    remedy: str | None = None
    """The name of the remedy that mends it in one step, where there is one."""


class FormatGuess(_Value):
    """How rows become conversations, how sure that is, and why."""

    format: str
    confidence: float
    """0 to 1: the share of looked-at rows that have this shape."""
    reason: str


class DatasetReport(_Value):
    """What an import did."""

    name: str
    format: str
    confidence: float
    reason: str
    rows: int
    """Conversations in the set."""
    eval_rows: int = 0
    """Conversations of a separate evaluation file; 0 where the split is made by hash."""
    skipped: int = 0
    """Rows left out because the person chose to skip bad ones."""
    problems: tuple[str, ...] = ()
    """The first few of what was wrong with skipped rows."""
    extra_fields: dict[str, int] = {}
    """Columns that no part of a conversation uses, kept beside it, and in how many rows."""
    source_file: str = ""
    source_sha256: str = ""
    source_bytes: int = 0
    sha256: str = ""
    """Of the canonical rows; the data's fingerprint in a run's record."""
    columns: dict[str, str] = {}
    unchanged: bool = False
    """True where the set was already there with the same content."""
    details: dict[str, Any] = {}
