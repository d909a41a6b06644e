"""How rows become conversations: each format by name, how it is recognised, and which parts a column map may name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from qlora_studio.core.conversation import Conversation
from qlora_studio.core.dataset import FormatGuess
from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.data.formats import chat, judged, plain, several, threads
from qlora_studio.data.formats.fields import Fields
from qlora_studio.data.formats.parts import media
from qlora_studio.data.readers.rows import Row, RowOrProblem, Unseen


@dataclass(frozen=True, slots=True)
class Converted:
    """A conversation, and how many rows it is the first to use."""

    conversation: Conversation
    rows: int = 1


ConvertedOrProblem = Converted | Problem | Unseen
Join = Callable[[Iterable[RowOrProblem], Mapping[str, str]], Iterator[tuple[Conversation, int] | Problem | Unseen]]


@dataclass(frozen=True, slots=True)
class Format:
    """One way to write rows."""

    name: str
    title: str
    parts: tuple[str, ...]
    """The parts that a column map may name."""
    fits: Callable[[Fields], str]
    """Why this row has this format, or an empty string where it has not."""
    convert: Callable[[Fields], Conversation]
    join: Join | None = None
    """For formats in which one conversation takes several rows."""


def _formats() -> Iterator[Format]:
    yield Format("tokens", "Token ids", ("input_ids", "labels", "attention_mask"), plain.fits_tokens, plain.tokens)
    yield Format("segments", "Segments", ("segments",), plain.fits_segments, plain.segments)
    yield Format("preferred", "Preferred outputs", ("input", "tools"), several.fits_preferred, several.preferred)
    ranks = ("prompt", "completions", "system")
    yield Format("ranked", "Ranked answers", ranks, several.fits_ranked, several.ranked)
    chosen = ("question", "choices", "answer", "system")
    yield Format("multiple-choice", "Multiple choice", chosen, several.fits_choices, several.choices)
    called = ("query", "answers", "tools", "system")
    yield Format("function-calls", "Function calls", called, several.fits_function_calls, several.function_calls)
    pair = ("prompt", "chosen", "rejected", "system", "tools")
    yield Format("preference", "Preference pairs", pair, judged.fits_preference, judged.preference)
    judged_parts = ("prompt", "completion", "label", "system", "tools")
    yield Format("kto", "Answers labelled good or bad", judged_parts, judged.fits_labelled, judged.labelled)
    yield Format("messages", "Chat messages", ("messages", "system", "tools"), chat.fits_messages, chat.messages)
    yield Format("sharegpt", "ShareGPT", ("conversations", "system", "tools"), chat.fits_sharegpt, chat.sharegpt)
    yield Format("dialogue", "Dialogue of texts", ("dialog",), chat.fits_dialogue, chat.dialogue)
    thread = ("id", "parent_id", "role", "text", "prompt", "output", "system")
    yield Format("thread", "Threads by parent", thread, threads.fits_thread, threads.node, threads.join_threads)
    alpaca = ("instruction", "input", "output", "system", "history")
    yield Format("alpaca", "Alpaca", alpaca, plain.fits_alpaca, plain.alpaca)
    completion = ("prompt", "completion", "system", "tools")
    named = plain.fits_prompt_completion
    yield Format("prompt-completion", "Prompt and completion", completion, named, plain.prompt_completion)
    parts = ("question", "answer", "context", "system")
    yield Format("question-answer", "Question and answer", parts, plain.fits_question_answer, plain.question_answer)
    yield Format("text", "Plain text", ("text",), plain.fits_text, plain.text)


TURN_PARTS = ("turn.role", "turn.content")
"""Parts of a column mapping that name the keys of a turn; `role.<name>=assistant` says who somebody is."""

FORMATS: dict[str, Format] = {entry.name: entry for entry in _formats()}
"""In the order they are tried."""


def recognise(row: Row, columns: Mapping[str, str]) -> tuple[str, str]:
    """Name and reason of the first format that fits a row; two empty strings where none does."""
    fields = Fields(row, columns)
    for entry in FORMATS.values():
        if reason := entry.fits(fields):
            return entry.name, reason
    return "", ""


def detect(rows: Sequence[Row], columns: Mapping[str, str] | None = None) -> FormatGuess:
    """The format that most of these rows have, with how sure that is and why. Raises a StudioError where none fits."""
    if not rows:
        raise StudioError("There is no row in this file.", "Give a file with at least one row.")
    counts: dict[str, int] = {}
    reasons: dict[str, str] = {}
    for row in rows:
        name, reason = recognise(row, columns or {})
        if name:
            counts[name] = counts.get(name, 0) + 1
            reasons.setdefault(name, reason)
    if not counts:
        row = rows[0]
        raise StudioError(
            f"The format of these rows is not known; their fields: {', '.join(map(str, row.values)) or 'none'}.",
            "Choose a format and say which column holds what, such as instruction=your_column "
            "or, inside a column, question=translation.en.",
            where=f"{row.file}:{row.line}",
        )
    best = max(counts, key=lambda name: counts[name])
    return FormatGuess(format=best, confidence=counts[best] / len(rows), reason=reasons[best])


def find_format(name: str) -> Format:
    """A format by name. Raises a StudioError that lists the names there are."""
    if name not in FORMATS:
        raise StudioError(f"There is no format '{name}'.", f"There are: {', '.join(FORMATS)}.", field="data.format")
    return FORMATS[name]


def check_columns(entry: Format, columns: Mapping[str, str], row: Row) -> None:
    """Raises a StudioError where a column map names a part or a column that does not exist."""
    for part, column in columns.items():
        if part.startswith("role.") or part in TURN_PARTS:
            continue
        if part not in entry.parts:
            raise StudioError(
                f"The format '{entry.name}' has no part '{part}'.", f"It has: {', '.join(entry.parts)}.", field=part
            )
        if column not in Fields(row, columns).values:
            raise StudioError(
                f"There is no column '{column}'.",
                f"There are: {', '.join(map(str, row.values)) or 'none'}.",
                where=f"{row.file}:{row.line}",
                field=column,
            )


def convert(row: Row, entry: Format, columns: Mapping[str, str]) -> Conversation:
    """The conversation of one row. Raises a StudioError with file, line and field where it has another format."""
    fields = Fields(row, columns)
    try:
        conversation = entry.convert(fields)
        _refuse_media(fields, conversation)
    except StudioError as error:
        other, reason = recognise(row, columns)
        if other and other != entry.name:
            raise StudioError(
                f"This row has another format than the file ({entry.name}): {reason}.",
                f"Put such rows into a file of their own; they are read as {other}.",
                where=str(fields.source),
                field=error.problems[0].field,
            ) from None
        raise
    return replace(conversation, source=fields.source, extra=fields.rest())


_MEDIA = {"<image>": "image", "<audio>": "audio", "<video>": "video"}


def _refuse_media(fields: Fields, conversation: Conversation) -> None:
    """Raises for a row whose text stands around a picture or a sound in another column."""
    for mark, name in _MEDIA.items():
        column = next((known for known in (name, f"{name}s") if fields.values.get(known)), None)
        if column and any(mark in turn.content for turn in conversation.turns):
            raise media(fields, f"{name} data", column)


def convert_all(
    items: Iterable[RowOrProblem], entry: Format, columns: Mapping[str, str]
) -> Iterator[ConvertedOrProblem]:
    """All conversations of these rows, and problems in the place of rows that cannot be one."""
    if entry.join:
        for made in entry.join(items, columns):
            yield Converted(*made) if isinstance(made, tuple) else made
        return
    for item in items:
        if not isinstance(item, Row):
            yield item
            continue
        try:
            yield Converted(convert(item, entry, columns))
        except StudioError as error:
            yield error.problems[0]
