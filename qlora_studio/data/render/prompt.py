"""THE prompt function: a conversation and a tokenizer become text, token ids and the spans that are trained.

Training, preview, chat, evaluation and export all call it, so what is trained is what is chatted is what is exported.
It reads no files and knows no model library. `drafts` makes text with marked characters, `encode` makes tokens of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qlora_studio.core.conversation import Conversation, Turn
from qlora_studio.core.example import Example
from qlora_studio.data.render.control import Escapes
from qlora_studio.data.render.encode import Draft, encode_drafts
from qlora_studio.data.render.layout import LayoutMistaken, Layouts
from qlora_studio.data.render.templated_row import RowRefused, TemplatedRow
from qlora_studio.data.render.tokenizer import Tokenizer
from qlora_studio.data.render.traits import Traits, read_traits


@dataclass(frozen=True, slots=True)
class RenderOptions:
    """The choices that change ids or spans. Chat uses those of the run it chats with."""

    train_on: Literal["answers", "last_answer", "everything"] = "answers"
    control_tokens: Literal["refuse", "escape", "keep"] = "refuse"
    thinking: bool = False
    """Chat only: whether the next answer may reason first. In training each row says so itself."""


def render(
    conversation: Conversation,
    tokenizer: Tokenizer,
    options: RenderOptions = RenderOptions(),
    traits: Traits | None = None,
) -> list[Example]:
    """The examples of one row: one, or one per trained answer where the template rewrites earlier turns.

    Each ends with its last trained token. Raises RowRefused, with file and line, where a row cannot be rendered whole.
    """
    return encode_drafts(drafts(conversation, tokenizer, options, traits or read_traits(tokenizer)), tokenizer)


def prompt_ids(
    turns: Sequence[Turn],
    tokenizer: Tokenizer,
    *,
    tools: Sequence[dict[str, Any]] = (),
    options: RenderOptions = RenderOptions(),
    traits: Traits | None = None,
) -> list[int]:
    """What the model is given to answer these turns: exactly the ids that stand before that answer in training."""
    traits = traits or read_traits(tokenizer)
    row = TemplatedRow(Conversation(turns=tuple(turns), tools=tuple(tools)), tokenizer, traits, options.control_tokens)
    text = row.prompt(len(turns), options.thinking)
    draft = Draft(text, row.starts(text, len(turns)), (), row.escapes, row.conversation, ends_at_span=False)
    return list(encode_drafts([draft], tokenizer)[0].input_ids)


def stop_ids(tokenizer: Tokenizer, traits: Traits | None = None) -> frozenset[int]:
    """The tokens that end an answer: the template's end of turn and of a tool call, and the model's end of text."""
    traits = traits or read_traits(tokenizer)
    ends = (traits.end_of_turn_id, traits.call_end_id, tokenizer.eos_id)
    return frozenset(index for index in ends if index is not None)


def drafts(
    conversation: Conversation,
    tokenizer: Tokenizer,
    options: RenderOptions,
    traits: Traits,
    layouts: Layouts | None = None,
) -> list[Draft]:
    """Text, answer starts and trained characters of one row, before tokens are made.

    With `layouts` plain rows are rendered once; raises LayoutMistaken where that was found to be wrong.
    """
    if conversation.tokens is not None:
        return [Draft("", (), (), Escapes(), conversation)]
    if conversation.segments:
        return [_draft_segments(conversation)]
    if conversation.text is not None:
        return [_draft_text(conversation, tokenizer, options)]
    row = TemplatedRow(conversation, tokenizer, traits, options.control_tokens)
    wanted = _wanted(conversation.turns, options.train_on)
    if not wanted:
        raise RowRefused(
            "nothing-trained", "This row has no turn to train.", "Add an answer, or leave the row out.", where=row.where
        )
    made = None
    if layouts is not None and options.train_on != "everything":
        made = layouts.draft(conversation, row.turns, row.escapes, row.whole_text)
        if made and not layouts.must_check():
            return made
    try:
        slow = row.whole(wanted, options.train_on) or [row.single(index) for index in sorted(wanted)]
    except RowRefused:
        if made:
            raise LayoutMistaken from None
        raise
    if made and made != slow:
        raise LayoutMistaken
    return slow


def make_layouts(tokenizer: Tokenizer, options: RenderOptions, traits: Traits) -> Layouts:
    """For rendering many rows with the same template and choices."""
    return Layouts(lambda conversation: drafts(conversation, tokenizer, options, traits))


def _draft_segments(conversation: Conversation) -> Draft:
    spans, position = [], 0
    for segment in conversation.segments:
        if segment.train:
            spans.append((position, position + len(segment.text)))
        position += len(segment.text)
    text = "".join(segment.text for segment in conversation.segments)
    starts = tuple(start for start, _ in spans if start)
    return Draft(text, starts, tuple(spans), Escapes(), conversation)


def _draft_text(conversation: Conversation, tokenizer: Tokenizer, options: RenderOptions) -> Draft:
    """Raw text is learned whole and ends with the end of text, once."""
    escapes = Escapes.make(tokenizer, options.control_tokens)
    text = escapes.hide(conversation.text or "", str(conversation.source), "text")
    end = next((token for token, index in tokenizer.added_tokens.items() if index == tokenizer.eos_id), "")
    if end and not text.rstrip().endswith(end):
        text += end
    return Draft(text, (), ((0, len(text)),), escapes, conversation)


def _wanted(turns: Sequence[Turn], train_on: str) -> set[int]:
    """Indexes of the turns that are trained. What a row says itself wins over the run's choice."""
    answers = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
    chosen = {"answers": answers, "last_answer": answers[-1:], "everything": range(len(turns))}[train_on]
    wanted = {index for index in chosen if turns[index].train is not False}
    return wanted | {index for index, turn in enumerate(turns) if turn.train}
