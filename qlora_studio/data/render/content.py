"""Whether everything a row says is found again in its rendered text: a template may not lose a word in silence.

What an answer says must stand inside its own trained stretch, what stands before it inside the prompt. Each piece is
counted, so that a call which vanishes is missed even where another one has the same name. White space at the ends of
a piece does not matter; values may be written as JSON, as Python or bare, since templates do each of these.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qlora_studio.core.conversation import ToolCall, Turn


@dataclass(frozen=True, slots=True)
class Piece:
    """Something a row says, and the words for it in a message."""

    text: str
    name: str
    turn: int
    """Its turn, from 0; -1 for the row's tools."""


def find_lost_of_answer(turn: Turn, index: int, text: str) -> Piece | None:
    """The first piece of an answer that is not in its trained text."""
    pieces = list(_pieces(turn, index))
    if turn.reasoning and turn.reasoning.strip():
        pieces.append(Piece(turn.reasoning.strip(), "the reasoning", index))
    return _first_lost(pieces, text)


def find_lost_of_context(turns: Sequence[Turn], tools: Sequence[dict[str, Any]], text: str) -> Piece | None:
    """The first piece of these turns, or of the row's tools, that is not in the text.

    Reasoning of earlier answers is no part of it: many templates leave it out on purpose, in chat as well.
    """
    pieces = [piece for index, turn in enumerate(turns) for piece in _pieces(turn, index)]
    for tool in tools:
        name = (tool.get("function") or tool).get("name") if isinstance(tool.get("function", {}), dict) else None
        if isinstance(name, str):
            pieces.append(Piece(name, f"the tool '{name}'", -1))
    return _first_lost(pieces, text)


def _pieces(turn: Turn, index: int) -> Iterator[Piece]:
    """What a turn says, reasoning aside."""
    words = turn.content.strip()
    if words and turn.role == "tool":
        yield from _tool_output(words, index)
    elif words:
        beside = "the text beside a call" if turn.tool_calls else f"the {turn.role} text"
        yield Piece(words, beside, index)
    for call in turn.tool_calls:
        yield Piece(call.name, f"the call of '{call.name}'", index)
        for leaf in _arguments(call):
            yield Piece(leaf, f"the argument {leaf[:40]!r} of '{call.name}'", index)


def _tool_output(words: str, index: int) -> Iterator[Piece]:
    yield Piece(words, "what the tool said", index)


def _arguments(call: ToolCall) -> Iterator[str]:
    try:
        yield from _leaves(json.loads(call.arguments))
    except (ValueError, RecursionError):
        yield call.arguments.strip()


def _leaves(value: Any) -> Iterator[str]:
    """Every name and value inside JSON, as text."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name.strip()
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    elif isinstance(value, str):
        yield value.strip()
    else:
        yield json.dumps(value)


def _first_lost(pieces: Sequence[Piece], text: str) -> Piece | None:
    """The first piece that stands in the text less often than in all pieces together."""
    whole = "\x00".join(piece.text for piece in pieces)
    known: set[str] = set()
    for piece in pieces:
        if piece.text and piece.text not in known:
            known.add(piece.text)
            wanted = whole.count(piece.text)
            if text.count(piece.text) < wanted and not _stands_otherwise(piece.text, wanted, text):
                return piece
    return None


def _stands_otherwise(piece: str, wanted: int, text: str) -> bool:
    """Whether a piece stands there often enough in another spelling: escaped as JSON, or as Python writes it."""
    spellings = {piece, json.dumps(piece)[1:-1], json.dumps(piece, ensure_ascii=False)[1:-1], repr(piece)[1:-1]}
    spellings.add({"true": "True", "false": "False", "null": "None"}.get(piece, piece))
    if any(text.count(spelling) >= wanted for spelling in spellings) or sum(map(text.count, spellings)) >= wanted:
        return True
    try:
        value = json.loads(piece)
    except (ValueError, RecursionError):
        return False
    # a tool's JSON that the template writes anew: each of its values is there
    return isinstance(value, dict | list) and all(
        text.count(leaf) or _stands_otherwise(leaf, 1, text) for leaf in _leaves(value) if leaf
    )
