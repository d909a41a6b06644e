"""Marked text becomes tokens, such that what stands before an answer has the same ids in training and in chat.

A merge across the edge between prompt and answer would give a prompt that chat never produces. So at every answer's
start the tokens before it are compared with those the prompt has on its own; where they differ, the text is cut there
and both sides are encoded apart. Chat's prompts are cut at the same places, so the ids are equal by construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

from qlora_studio.core.conversation import Conversation
from qlora_studio.core.example import IGNORED, Example
from qlora_studio.data.render.control import Escapes
from qlora_studio.data.render.tokenizer import Encoded, Tokenizer

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Draft:
    """The text of an example with its trained characters."""

    text: str
    starts: tuple[int, ...]
    """Ascending positions where an answer starts."""
    spans: tuple[Span, ...]
    """Ascending half-open stretches of the text that are trained."""
    escapes: Escapes
    conversation: Conversation
    ends_at_span: bool = True
    """Whether the example ends with its last trained token."""


def encode_drafts(drafts: Sequence[Draft], tokenizer: Tokenizer, keep_text: bool = True) -> list[Example]:
    """One example per draft, in order. Encodes all texts in one call."""
    plain = [draft for draft in drafts if draft.conversation.tokens is None and not draft.escapes.has_marks(draft.text)]
    encodings = dict(zip(map(id, plain), tokenizer.encode([draft.text for draft in plain]), strict=True))
    edges = _Edges(tokenizer)
    examples = []
    for draft in drafts:
        if draft.conversation.tokens is not None:
            examples.append(_given(draft.conversation))
            continue
        encoding = encodings.get(id(draft))
        bad = [start for start in draft.starts if encoding and not edges.clean(draft.text, start, encoding)]
        if encoding is not None and not bad:
            ids, spans = encoding.ids, [_token_span(span, encoding) for span in draft.spans]
        else:
            ids, spans = _encode_apart(draft, bad if encoding is not None else draft.starts, tokenizer)
        examples.append(_finish(draft, ids, spans, tokenizer, keep_text))
    return examples


def _given(conversation: Conversation) -> Example:
    """A row that came as ids. Its labels say what is trained."""
    assert conversation.tokens is not None
    ids, labels = conversation.tokens.input_ids, conversation.tokens.labels
    spans, start = [], None
    for index, label in enumerate((*labels, IGNORED)):
        if label != IGNORED and start is None:
            start = index
        elif label == IGNORED and start is not None:
            spans.append((start, index))
            start = None
    return Example(ids, tuple(spans), source=conversation.source, origin=conversation.origin)


def _finish(draft: Draft, ids: list[int], spans: list[Span], tokenizer: Tokenizer, keep_text: bool) -> Example:
    """Exactly one beginning token where the model wants one, and nothing after the last trained token."""
    bos = tokenizer.bos_id
    if bos is not None:
        doubled = sum(1 for _ in takewhile(lambda one: one == bos, ids))
        ids = [bos, *ids[doubled:]]
        spans = [(max(start + 1 - doubled, 0), end + 1 - doubled) for start, end in spans]
    spans = _joined(spans)
    text = draft.text
    if draft.ends_at_span and spans:
        ids = ids[: spans[-1][1]]
        text = text[: draft.spans[-1][1]]
    source, origin = draft.conversation.source, draft.conversation.origin
    if not keep_text:
        return Example(tuple(ids), tuple(spans), source=source, origin=origin)
    shown = [(len(draft.escapes.show(text[:start])), len(draft.escapes.show(text[:end]))) for start, end in draft.spans]
    return Example(tuple(ids), tuple(spans), draft.escapes.show(text), tuple(shown), source, origin)


def _joined(spans: Sequence[Span]) -> list[Span]:
    """Spans that touch become one, empty ones go."""
    joined: list[Span] = []
    for start, end in spans:
        if end <= start:
            continue
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _token_at(position: int, encoding: Encoded) -> int:
    """Index of the first token that holds a character at or after this position."""
    ids = encoding.ids
    if not ids:
        return 0
    while True:
        token = encoding.char_to_token(position)
        if token is not None:
            return token
        last = encoding.token_to_chars(len(ids) - 1)
        if last is None or position >= last[1]:
            return len(ids)
        position += 1


def _token_span(span: Span, encoding: Encoded) -> Span:
    """The tokens of these characters. A token on the edge belongs to the side where it begins."""
    start, end = _token_at(span[0], encoding), _token_at(span[1], encoding)
    return start, end


class _Edges:
    """Whether the tokens before an answer are those that the prompt has on its own. Keeps what it has encoded."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.added = frozenset(tokenizer.added_tokens.values())
        self.alone: dict[str, list[int]] = {}

    def clean(self, text: str, start: int, encoding: Encoded) -> bool:
        """Looks back to the last added token only: tokenizers split there first, so nothing merges across it."""
        edge = _token_at(start, encoding)
        ids = encoding.ids
        first = next((index for index in range(edge - 1, -1, -1) if ids[index] in self.added), 0)
        chars = encoding.token_to_chars(first) if first else None
        window = text[chars[0] : start] if chars else text[:start]
        if window not in self.alone:
            self.alone[window] = self.tokenizer.encode([window])[0].ids
        return self.alone[window] == ids[first if chars else 0 : edge]


def _encode_apart(draft: Draft, cuts: Sequence[int], tokenizer: Tokenizer) -> tuple[list[int], list[Span]]:
    """Ids of text that is cut at these places, and around stand-ins for control tokens."""
    edges = sorted({0, *cuts, len(draft.text)})
    wanted = sorted({edge for span in draft.spans for edge in span})
    ids: list[int] = []
    marks: dict[int, int] = {}
    position = 0
    for left, right in pairwise(edges):
        for piece in draft.escapes.split(draft.text[left:right]):
            typed = draft.escapes.token_of(piece) if len(piece) == 1 else None
            if typed:
                marks.setdefault(position, len(ids))
                for half in (typed[:1], typed[1:]):  # neither half is the control token, so both stay plain characters
                    ids += _encode_inside(half, tokenizer, at_start=False).ids()
            else:
                inside = _encode_inside(piece, tokenizer, at_start=position == 0)
                for edge in wanted:
                    if position <= edge < position + len(piece):
                        marks.setdefault(edge, len(ids) + inside.token_at(edge - position))
                ids += inside.ids()
            position += len(piece)
    for edge in wanted:
        marks.setdefault(edge, len(ids))
    return ids, [(marks[start], marks[end]) for start, end in draft.spans]


@dataclass(frozen=True, slots=True)
class _Inside:
    """A piece encoded as in the middle of a text, with what stands before it in the encoding."""

    encoding: Encoded
    chars_before: int
    tokens_before: int

    def ids(self) -> list[int]:
        return self.encoding.ids[self.tokens_before :]

    def token_at(self, position: int) -> int:
        return _token_at(position + self.chars_before, self.encoding) - self.tokens_before


def _encode_inside(text: str, tokenizer: Tokenizer, at_start: bool) -> _Inside:
    """Behind an end token where that keeps away the space some tokenizers put before a text."""
    anchor = next((token for token, index in tokenizer.added_tokens.items() if index == tokenizer.eos_id), "")
    if anchor and not at_start:
        behind = tokenizer.encode([anchor + text])[0]
        if behind.ids[:1] == [tokenizer.eos_id] and tokenizer.decode(behind.ids[1:]) == text:
            return _Inside(behind, len(anchor), 1)
    return _Inside(tokenizer.encode([text])[0], 0, 0)
