"""Training and evaluation keep apart: no first prompt of a conversation stands on both sides.

A conversation belongs to its first prompt, whatever follows: rows that are beginnings of longer rows, branches of one
thread and the good and bad answers to one question all stay together. The check knows nothing of how the split is
made; it looks at the conversations that either side really got.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator

from qlora_studio.core.conversation import Conversation
from qlora_studio.core.errors import LawBroken
from qlora_studio.core.example import IGNORED


def first_prompt(conversation: Conversation) -> str:
    """What a row begins by asking: its first user turn, or what stands before its first trained piece."""
    if conversation.turns:
        question = next((turn for turn in conversation.turns if turn.role == "user"), conversation.turns[0])
        return question.content
    if conversation.segments:
        context = next((segment for segment in conversation.segments if not segment.train), conversation.segments[0])
        return context.text
    if conversation.tokens is not None:
        labels = conversation.tokens.labels
        begins = next((index for index, label in enumerate(labels) if label != IGNORED), 0)
        return ",".join(map(str, conversation.tokens.input_ids[: begins or len(labels)]))
    return conversation.text or ""


def prompt_hash(conversation: Conversation) -> int:
    """64 bits of a row's first prompt, white space aside: rows with the same ones go to the same side of a split."""
    prompt = " ".join(first_prompt(conversation).split())
    return int.from_bytes(hashlib.blake2b(prompt.encode("utf-8", "replace"), digest_size=8).digest(), "little")


class Sides:
    """Watches the conversations that each side gets."""

    def __init__(self) -> None:
        self.trained = array("q")
        """The mark of every training row; a set of a million would take twelve times as much memory."""
        self.held_out: dict[int, str] = {}

    def watch(self, conversations: Iterable[Conversation], split: str) -> Iterator[Conversation]:
        """The same conversations; their prompts are remembered for this side."""
        for conversation in conversations:
            self.note(conversation, split)
            yield conversation

    def note(self, conversation: Conversation, split: str) -> None:
        mark = _mark(conversation)
        if split == "train":
            self.trained.append(mark)
        else:
            self.held_out.setdefault(mark, str(conversation.source))

    def add(self, later: Sides) -> None:
        """Takes what was noted of rows that come after these, by this process or by one that was forked from it."""
        self.trained += later.trained
        self.held_out = later.held_out | self.held_out

    def check(self) -> None:
        """Raises LawBroken where a prompt stands on both sides."""
        marks = self.held_out.keys() & self.trained
        if marks:
            both = [where for mark, where in self.held_out.items() if mark in marks]
            raise LawBroken(
                f"{len(both)} prompt{'s' if len(both) != 1 else ''} of the evaluation rows would be trained as well; "
                f"the first is that of {both[0]}."
            )


def _mark(conversation: Conversation) -> int:
    """The first thing said by a user, or all there is before an answer; told apart from `prompt_hash` on purpose."""
    for turn in conversation.turns:
        if turn.role == "user":
            return hash(("turn", turn.content.strip()))
    return hash(("row", first_prompt(conversation).strip()))
