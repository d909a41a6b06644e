"""How rows become conversations: each format by name, how it is recognised, and what of a row it uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from qlora_studio.core.conversation import Conversation
from qlora_studio.core.dataset import FormatGuess
from qlora_studio.core.errors import StudioError
from qlora_studio.data import formats_chat, formats_plain
from qlora_studio.data.fields import Fields
from qlora_studio.data.rows import Row


@dataclass(frozen=True, slots=True)
class Format:
    """One way to write a row."""

    name: str
    title: str
    parts: tuple[str, ...]
    """The parts that a column map may name."""
    fits: Callable[[Fields], str]
    """Why this row has this format, or an empty string where it has not."""
    convert: Callable[[Fields], Conversation]


FORMATS: dict[str, Format] = {
    entry.name: entry
    for entry in (
        Format("messages", "Chat messages", ("messages", "tools"), formats_chat.fits_messages, formats_chat.messages),
        Format(
            "sharegpt",
            "ShareGPT",
            ("conversations", "system", "tools"),
            formats_chat.fits_sharegpt,
            formats_chat.sharegpt,
        ),
        Format(
            "alpaca",
            "Alpaca",
            ("instruction", "input", "output", "system", "history"),
            formats_plain.fits_alpaca,
            formats_plain.alpaca,
        ),
        Format(
            "prompt-completion",
            "Prompt and completion",
            ("prompt", "completion", "system"),
            formats_plain.fits_prompt_completion,
            formats_plain.prompt_completion,
        ),
        Format("text", "Plain text", ("text",), formats_plain.fits_text, formats_plain.text),
    )
}
"""In the order they are tried."""


def detect(rows: Sequence[Row], columns: Mapping[str, str] | None = None) -> FormatGuess:
    """The format that most of these rows have, with how sure that is and why. Raises a StudioError where none fits."""
    if not rows:
        raise StudioError("There is no row in this file.", "Give a file with at least one row.")
    counts: dict[str, int] = {}
    reasons: dict[str, str] = {}
    for row in rows:
        for entry in FORMATS.values():
            if reason := entry.fits(Fields(row, columns or {})):
                counts[entry.name] = counts.get(entry.name, 0) + 1
                reasons.setdefault(entry.name, reason)
                break
    if not counts:
        row = rows[0]
        raise StudioError(
            f"The format of these rows is not known; their fields: {', '.join(map(str, row.values)) or 'none'}.",
            "Choose a format and say which column holds what, such as --column instruction=your_column.",
            where=f"{row.file}:{row.line}",
        )
    best = max(counts, key=lambda name: counts[name])
    return FormatGuess(format=best, confidence=counts[best] / len(rows), reason=reasons[best])


def find_format(name: str) -> Format:
    """A format by name. Raises a StudioError that lists the names there are."""
    if name not in FORMATS:
        raise StudioError(f"There is no format '{name}'.", f"There are: {', '.join(FORMATS)}.", field="data.format")
    return FORMATS[name]


def convert(row: Row, format: Format, columns: Mapping[str, str], origin: str = "") -> Conversation:
    """The conversation of one row. Raises a StudioError with file, line and field where it has another format."""
    fields = Fields(row, columns)
    return replace(format.convert(fields), source=fields.source, origin=origin, extra=fields.rest())
