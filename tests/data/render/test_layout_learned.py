"""Layouts of plain rows: learned once, equal to the slow way, given up where a row is not plain."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qlora_studio.core.conversation import Conversation, ToolCall, Turn
from qlora_studio.core.errors import StudioError
from qlora_studio.data.render.control import Escapes
from qlora_studio.data.render.encode import Draft
from qlora_studio.data.render.layout import Layouts, _is_plain, _place

S, U, A = Turn("system", "s"), Turn("user", "hi"), Turn("assistant", "ho")


def text_of(turns):
    return "^" + "".join(f"{turn.role[0]}:{turn.content};" for turn in turns) + "$"


def slow(row):
    """A template that ends behind the last answer, and trains every answer with its mark of an end."""
    last = max((at for at, turn in enumerate(row.turns, 1) if turn.role == "assistant"), default=0)
    text, starts, spans = "^", [], []
    for turn in row.turns[:last]:
        text += f"{turn.role[0]}:"
        if turn.role == "assistant":
            starts.append(len(text))
            spans.append((len(text), len(text) + len(turn.content) + 1))
        text += f"{turn.content};"
    return [Draft(text, tuple(starts), tuple(spans), Escapes(), row)]


ROWS = [(U, A), (S, U, A, U, A), (U, A, U), (U, A, A)]


@pytest.mark.parametrize("turns", ROWS, ids=lambda turns: "".join(turn.role[0] for turn in turns))
def test_a_learned_layout_gives_what_the_slow_way_gives(turns):
    layouts, asked = Layouts(slow), []

    def whole(count):
        asked.append(count)
        return text_of(turns[:count])

    for words in ("", "longer "):
        turns = tuple(replace(turn, content=words + turn.content) for turn in turns)
        row = Conversation(turns=turns)
        assert layouts.draft(row, turns, Escapes(), whole) == slow(row)
    last = max(at for at, turn in enumerate(turns, 1) if turn.role == "assistant")
    assert (layouts.used, len(layouts.known), asked) == (2, 1, [last, last]), "as much of the row as is trained"


def test_hidden_words_are_laid_out_and_the_row_itself_is_kept():
    row = Conversation(turns=(U, A))
    turns = (replace(U, content="hidden"), A)
    (made,) = Layouts(slow).draft(row, turns, Escapes("escape"), lambda count: text_of(turns))
    assert (made.text, made.conversation, made.escapes) == ("^u:hidden;a:ho;", row, Escapes("escape"))


@pytest.mark.parametrize("key", ["role", "train"])
def test_roles_and_masks_have_layouts_of_their_own(key):
    layouts, other = Layouts(slow), {"role": Turn("system", "x"), "train": replace(U, train=True)}[key]
    for first in (U, other):
        layouts.draft(
            Conversation(turns=(first, A)), (first, A), Escapes(), lambda count, first=first: text_of((first, A))
        )
    assert (layouts.used, len(layouts.known)) == (2, 2)


def refuse(row):
    raise StudioError("No.")


def test_a_template_that_cannot_be_learned_is_asked_once():
    for way in (refuse, lambda row: slow(row) * 2, lambda row: []):
        layouts = Layouts(way)
        for _ in range(2):
            assert layouts.draft(Conversation(turns=(U, A)), (U, A), Escapes(), lambda count: text_of((U, A))) is None
        assert list(layouts.known.values()) == [None] and layouts.used == 0


def test_a_row_whose_text_is_another_goes_the_slow_way():
    layouts = Layouts(slow)

    def fail(count):
        raise StudioError("No.")

    for whole in (lambda count: "^u:hi;a:h", fail):
        assert layouts.draft(Conversation(turns=(U, A)), (U, A), Escapes(), whole) is None
    assert layouts.used == 0


@pytest.mark.parametrize(
    ("used", "must"),
    [
        (0, True),
        (1, True),
        (15, True),
        (16, True),
        (17, False),
        (63, False),
        (64, True),
        (65, False),
        (127, False),
        (128, True),
    ],
)
def test_the_first_sixteen_and_every_64th_are_compared(used, must):
    assert Layouts(slow, used=used).must_check() == must


@pytest.mark.parametrize(
    ("turns", "tools", "plain"),
    [
        ((U, A), (), True),
        ((U, A) * 8, (), True),
        ((U, A) * 8 + (U,), (), False),
        ((), (), False),
        ((U, A), ({"name": "f"},), False),
        ((U, replace(A, reasoning="r")), (), False),
        ((U, replace(A, tool_calls=(ToolCall("f", "{}"),))), (), False),
        ((replace(U, name="n"), A), (), False),
        ((replace(U, tool_call_id="c"), A), (), False),
        ((U, A, Turn("tool", "x")), (), False),
        ((replace(U, content=""), A), (), False),
        ((U, replace(A, content="<think>x")), (), False),
        ((U, replace(A, content="I think")), (), True),
    ],
)
def test_what_makes_a_row_plain(turns, tools, plain):
    assert _is_plain(Conversation(turns=turns, tools=tools), turns) == plain


@pytest.mark.parametrize(
    ("position", "place"), [(0, (0, 0)), (4, (0, 4)), (5, (0, 5)), (8, (2, 0)), (9, (2, 1)), (20, (4, 5))]
)
def test_a_position_is_counted_from_the_literal_before_it(position, place):
    """Pieces: a literal at 0, a turn at 5, a literal at 8, a turn at 12, a literal at 15."""
    assert _place(position, [0, 5, 8, 12, 15]) == place
