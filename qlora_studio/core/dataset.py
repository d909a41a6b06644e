"""What is known about imported data: findings, the guessed format, the report of a set. Values only."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from qlora_studio.core.errors import LawBroken

Severity = Literal["error", "warning", "note"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Finding(_Value):
    """Something in the data that a person should know before a run, with where it is and what clears it."""

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
    """The name of the cleaning step that clears it, where there is one."""
    setting: str = ""
    """The setting of a run that clears it, as `--set` takes it, where there is one: `data.control_tokens=escape`."""


class FormatGuess(_Value):
    """How rows become conversations, how sure that is, and why."""

    format: str
    confidence: float
    """0 to 1: the share of the rows read that have this shape."""
    reason: str


class RowAccount(_Value):
    """What became of every row of a source: seen = imported + refused + dropped."""

    seen: int = 0
    """Rows that the readers met, counted where each begins."""
    imported: int = 0
    """Rows that are part of a conversation."""
    refused: int = 0
    """Rows that cannot be read or converted. Each stands with file and line in the set's list of refused rows."""
    dropped: int = 0
    """Rows left out by choice, because their prompt stands in the evaluation rows."""
    passed_over: tuple[str, ...] = ()
    """Files, and parts of files, that are no rows: `README.md: text beside tables`."""
    notes: tuple[str, ...] = ()
    """Choices a reader made, as sentences."""

    def check(self, where: str = "") -> RowAccount:
        """The account itself. Raises LawBroken, which names the numbers, where it does not add up."""
        if self.seen != self.imported + self.refused + self.dropped:
            raise LawBroken(
                f"The account of rows does not add up: {self.seen} seen, but {self.imported} imported, "
                f"{self.refused} refused and {self.dropped} dropped.",
                where=where,
            )
        return self

    def plus(self, other: RowAccount) -> RowAccount:
        """One account of two sources."""
        return RowAccount(
            seen=self.seen + other.seen,
            imported=self.imported + other.imported,
            refused=self.refused + other.refused,
            dropped=self.dropped + other.dropped,
            passed_over=self.passed_over + other.passed_over,
            notes=self.notes + other.notes,
        )

    def __str__(self) -> str:
        account = f"{self.seen} seen = {self.imported} imported + {self.refused} refused"
        return account + (f" + {self.dropped} dropped" if self.dropped else "")


class DatasetReport(_Value):
    """What an import did."""

    name: str
    title: str = ""
    """What the person called it, where that is no name of a folder."""
    format: str
    confidence: float
    reason: str
    rows: int
    """Conversations in the set."""
    eval_rows: int = 0
    """Conversations of a separate evaluation file; 0 where the split is made by hash."""
    account: RowAccount = RowAccount()
    """What became of every row, the evaluation file's included."""
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
