"""The cleaning steps: each gives every conversation back as it should be, or None to leave it out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

from qlora_studio.core.conversation import Conversation, Segment, Turn
from qlora_studio.core.errors import StudioError
from qlora_studio.data.cleaning.duplicates import NearDuplicates, Pair, text_hash
from qlora_studio.data.cleaning.text import fix_mojibake, mask_emails, mask_secrets, remove_odd

Clean = Callable[[Conversation], Conversation | None]


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that are read anew each time they are gone through, so that a big set is never held."""

    read: Callable[[], Iterator[Conversation]]

    def __iter__(self) -> Iterator[Conversation]:
        return self.read()


@dataclass(frozen=True, slots=True)
class CleaningStep:
    """One way to clean rows."""

    name: str
    title: str
    """What the button says."""
    make: Callable[[Iterable[Conversation]], Clean]
    """A fresh run over these rows; only steps that compare rows look at them before it starts."""


def all_text(conversation: Conversation) -> str:
    """Everything a row says, for looking through it and for comparing rows that are nearly the same."""
    if conversation.turns:
        turns = (*conversation.turns, *conversation.rejected)
        return "\x1e".join(
            f"{turn.role}\x1f{turn.reasoning or ''}\x1f{turn.content}\x1f{turn.tool_calls}" for turn in turns
        )
    if conversation.tokens is not None:
        return f"{conversation.tokens.input_ids}{conversation.tokens.labels}"
    return conversation.text or "\x1e".join(f"{segment.train}{segment.text}" for segment in conversation.segments)


def all_trained(conversation: Conversation, text: str) -> str:
    """All that decides what is learned of a row, whose `all_text` this is: two rows are copies where it is equal."""
    if not (conversation.turns or conversation.tools or conversation.label is not None):
        return text
    masks = [turn.train for turn in conversation.turns]  # as many as there are turns that do not lose
    return f"{text}\x1d{conversation.tools}\x1d{conversation.label}\x1d{masks}"


def answers(conversation: Conversation) -> tuple[Turn, ...]:
    return tuple(turn for turn in conversation.turns if turn.role == "assistant")


def is_empty_answer(turn: Turn) -> bool:
    return not turn.content.strip() and not turn.tool_calls


def change_text(conversation: Conversation, change: Callable[[str], str]) -> Conversation:
    """The conversation with a change made to every text in it."""

    def changed(turn: Turn) -> Turn:
        return replace(turn, content=change(turn.content), reasoning=turn.reasoning and change(turn.reasoning))

    return replace(
        conversation,
        turns=tuple(map(changed, conversation.turns)),
        rejected=tuple(map(changed, conversation.rejected)),
        text=None if conversation.text is None else change(conversation.text),
        segments=tuple(Segment(change(segment.text), segment.train) for segment in conversation.segments),
    )


def _changing(change: Callable[[str], str]) -> Callable[[Iterable[Conversation]], Clean]:
    return lambda rows: lambda conversation: change_text(conversation, change)


def _without_empty_answers(rows: Iterable[Conversation]) -> Clean:
    return lambda row: None if any(map(is_empty_answer, answers(row))) else row


def _without_unanswered(rows: Iterable[Conversation]) -> Clean:
    return lambda row: None if row.turns and not answers(row) else row


def _without_empty_prompts(rows: Iterable[Conversation]) -> Clean:
    return lambda row: None if any(turn.role == "user" and not turn.content.strip() for turn in row.turns) else row


def _without_copies(rows: Iterable[Conversation]) -> Clean:
    seen: set[int] = set()

    def clean(row: Conversation) -> Conversation | None:
        mark = text_hash(all_trained(row, all_text(row)))
        if mark in seen:
            return None
        seen.add(mark)
        return row

    return clean


def _without_near_copies(rows: Iterable[Conversation]) -> Clean:
    """Looks at all rows first: which are nearly the same as an earlier one."""
    near = NearCopies()
    for number, row in enumerate(rows):
        near.remember(row, all_text(row), number)
    away = {late for late, _ in near.found()}
    numbers = count()
    return lambda row: None if next(numbers) in away else row


class NearCopies:
    """Rows that are nearly the same. A good and a bad answer to one question are a pair and no copies."""

    def __init__(self) -> None:
        self.by_label: dict[bool | None, NearDuplicates] = {}

    def remember(self, row: Conversation, text: str, number: int) -> None:
        """`text` is the row's `all_text`."""
        if row.label not in self.by_label:
            self.by_label[row.label] = NearDuplicates()
        self.by_label[row.label].remember(text, number)

    def found(self) -> list[Pair]:
        """Each row that nearly repeats an earlier one, in order."""
        return sorted(pair for duplicates in self.by_label.values() for pair in duplicates.pairs())


def _without_unanswered_end(rows: Iterable[Conversation]) -> Clean:
    def clean(row: Conversation) -> Conversation | None:
        answered = [place for place, turn in enumerate(row.turns, 1) if turn.role == "assistant"]
        return replace(row, turns=row.turns[: answered[-1]]) if answered else row

    return clean


CLEANING_STEPS: dict[str, CleaningStep] = {
    step.name: step
    for step in (
        CleaningStep("drop-empty-answers", "Leave out rows with an empty answer", _without_empty_answers),
        CleaningStep("drop-unanswered", "Leave out rows without an answer", _without_unanswered),
        CleaningStep("drop-empty-prompts", "Leave out rows with an empty question", _without_empty_prompts),
        CleaningStep("drop-copies", "Keep the first of equal rows", _without_copies),
        CleaningStep("drop-near-copies", "Keep the first of nearly equal rows", _without_near_copies),
        CleaningStep("drop-unanswered-end", "Remove the last question nobody answers", _without_unanswered_end),
        CleaningStep("fix-mojibake", "Decode wrongly decoded text again", _changing(fix_mojibake)),
        CleaningStep("remove-odd-characters", "Remove invisible characters", _changing(remove_odd)),
        CleaningStep("mask-secrets", "Replace keys by a marker", _changing(mask_secrets)),
        CleaningStep("mask-emails", "Replace addresses by name@example.com", _changing(mask_emails)),
    )
}
"""In the order they are shown."""


def find_step(name: str) -> CleaningStep:
    """A cleaning step by name. Raises a StudioError that lists the names there are."""
    if name not in CLEANING_STEPS:
        raise StudioError(f"There is no cleaning step '{name}'.", f"There are: {', '.join(CLEANING_STEPS)}.")
    return CLEANING_STEPS[name]


def cleaned(rows: Sequence[Conversation] | Rows, names: Iterable[str]) -> Iterator[Conversation]:
    """These rows after these steps, in the order of the names. The rows can be gone through more than once."""
    known = [find_step(name) for name in names]  # all of them before any looks at the rows
    steps = [step.make(rows) for step in known]
    for conversation in rows:
        row: Conversation | None = conversation
        for step in steps:
            row = step(row) if row is not None else None
        if row is not None:
            yield row
