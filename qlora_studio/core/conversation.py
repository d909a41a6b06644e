"""The canonical record of one row of training data. Knows nothing of files, formats, templates or tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a row came from, for every message that names it."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


NOWHERE = Source("", 0)
"""The source of what was not read from a file."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call the assistant makes. `arguments` is JSON text, kept as it was written."""

    name: str
    arguments: str
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: Role
    content: str
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    tool_call_id: str | None = None
    train: bool | None = None
    """True or false where the row says so itself; None leaves it to the run's choice."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of literal text that is trained or not (the input-output format)."""

    text: str
    train: bool


@dataclass(frozen=True, slots=True)
class Pretokenised:
    """Token ids that somebody else made; a label of -100 is not trained."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Conversation:
    """One row. Exactly one of `turns`, `text`, `segments` and `tokens` carries it."""

    turns: tuple[Turn, ...] = ()
    text: str | None = None
    segments: tuple[Segment, ...] = ()
    tokens: Pretokenised | None = None
    tools: tuple[dict[str, Any], ...] = ()
    rejected: tuple[Turn, ...] = ()
    """Preference rows: the turns that lose against the last turns of `turns`."""
    label: bool | None = None
    """KTO rows: whether the answer is a good one."""
    source: Source = NOWHERE
    origin: str = ""
    """The data set this row belongs to, for mixtures."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What else the row held. Kept, listed, never trained."""
