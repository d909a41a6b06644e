"""What a template writes around the turns of a plain conversation, learned once, so that a row is rendered once.

The slow way renders a row once for each answer's prompt and once whole. Most rows are plain, and around the turns of
plain rows a template writes the same words each time. So the slow way is gone once, for a conversation of sentinels
with these roles; a row is then rendered whole once, and it is plain where exactly the learned words stand around its
turns. Every so often a row goes both ways; where they differ, the layout was a mistake and is given up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from qlora_studio.core.conversation import Conversation, Turn
from qlora_studio.core.errors import StudioError
from qlora_studio.data.render.control import Escapes
from qlora_studio.data.render.encode import Draft

_CHECKED_AT_FIRST, _CHECKED_EVERY = 16, 64
_MOST_TURNS = 16

Render = Callable[[Conversation], list[Draft]]
WholeText = Callable[[int], str]
"""The template's text of the first so many turns of a row, with nothing asked behind them."""
Place = tuple[int, int]
"""A piece of the text (literals and turns by turns, from 0) and a position in it."""


class LayoutMistaken(Exception):
    """A row for which the learned layout and the slow way differ: all rows must go the slow way."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """The words before the first turn, between turns and after the last, and what is trained of the whole."""

    literals: tuple[str, ...]
    starts: tuple[Place, ...]
    spans: tuple[tuple[Place, Place], ...]


@dataclass
class Layouts:
    """The layouts of one template under one run's choices. `slow` gives the drafts of any row."""

    slow: Render
    known: dict[tuple[tuple[str, bool | None], ...], _Layout | None] = field(default_factory=dict)
    used: int = 0

    def draft(
        self, row: Conversation, turns: Sequence[Turn], escapes: Escapes, whole_text: WholeText
    ) -> list[Draft] | None:
        """The draft of a plain row; None where it is not plain. `turns` have their typed control tokens hidden."""
        if not _is_plain(row, turns):
            return None
        key = tuple((turn.role, turn.train) for turn in turns)
        if key not in self.known:
            self.known[key] = self._learn(row)
        layout = self.known[key]
        if layout is None:
            return None
        pieces = [layout.literals[0]]
        for turn, literal in zip(turns, layout.literals[1:], strict=False):
            pieces += [turn.content, literal]
        text = "".join(pieces)
        try:
            if not whole_text(len(layout.literals) - 1).startswith(text):
                return None
        except StudioError:
            return None
        begins = [0, *accumulate(map(len, pieces))]
        starts = tuple(begins[piece] + offset for piece, offset in layout.starts)
        spans = tuple((begins[one] + left, begins[other] + right) for (one, left), (other, right) in layout.spans)
        self.used += 1
        return [Draft(text, starts, spans, escapes, row)]

    def must_check(self) -> bool:
        """Whether the draft just made is to be compared with the slow way."""
        return self.used <= _CHECKED_AT_FIRST or self.used % _CHECKED_EVERY == 0

    def _learn(self, row: Conversation) -> _Layout | None:
        """The layout of these roles; None where it takes several examples or does not hold the turns in order."""
        turns = tuple(replace(turn, content=f"Zq{index}vx") for index, turn in enumerate(row.turns))
        try:
            made = self.slow(replace(row, turns=turns))
        except StudioError:
            return None
        if len(made) != 1:
            return None
        text, literals, position = made[0].text, [], 0
        pieces = [0]
        for turn in turns:
            found = text.find(turn.content, position)
            if found < 0:
                break  # behind the last trained answer
            literals.append(text[position:found])
            position = found + len(turn.content)
            pieces += [found, position]
        literals.append(text[position:])
        starts = tuple(_place(start, pieces) for start in made[0].starts)
        spans = tuple((_place(start, pieces), _place(end, pieces)) for start, end in made[0].spans)
        return _Layout(tuple(literals), starts, spans)


def _place(position: int, pieces: Sequence[int]) -> Place:
    """The last piece that begins at or before this position, of those that are literals."""
    piece = max(index for index in range(0, len(pieces), 2) if pieces[index] <= position)
    return piece, position - pieces[piece]


def _is_plain(row: Conversation, turns: Sequence[Turn]) -> bool:
    """Whether nothing about the row could make a template write other words around it."""
    if row.tools or not 0 < len(turns) <= _MOST_TURNS:
        return False
    for turn in turns:
        if turn.reasoning or turn.tool_calls or turn.name or turn.tool_call_id or turn.role == "tool":
            return False
        if not turn.content or "think>" in turn.content:
            return False
    return True
