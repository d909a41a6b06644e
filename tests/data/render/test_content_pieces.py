"""What counts as found in a rendered text, piece by piece and spelling by spelling."""

from __future__ import annotations

import json

import pytest

from qlora_studio.core.conversation import ToolCall, Turn
from qlora_studio.data.render.content import Piece, find_lost_of_answer, find_lost_of_context

SAY, CALL = Turn("assistant", " ho "), Turn("assistant", "", tool_calls=(ToolCall("f", '{"a": "x y", "n": 3}'),))
REASONED = Turn("assistant", "ho", reasoning="\nhm\n")
SHORT = Turn("assistant", "", tool_calls=(ToolCall("f", '{"a": "x y", "b": 3}'),))
TOLD = Turn("tool", ' {"k": ["v", 2.5], "none": null, "yes": true} ')


@pytest.mark.parametrize(
    ("turn", "text", "lost"),
    [
        (SAY, "ho", None),
        (SAY, "h o", Piece("ho", "the assistant text", 4)),
        (Turn("assistant", "  "), "", None),
        (CALL, 'f(a="x y", n=3)', None),
        (CALL, 'g(a="x y", n=3)', Piece("f", "the call of 'f'", 4)),
        (CALL, 'f("x y", n=3)', Piece("a", "the argument 'a' of 'f'", 4)),
        (CALL, 'f(a="x", n=3)', Piece("x y", "the argument 'x y' of 'f'", 4)),
        (CALL, 'f(a="x y", n=4)', Piece("3", "the argument '3' of 'f'", 4)),
        (Turn("assistant", "so", tool_calls=CALL.tool_calls), 'f(a="x y", n=3)', Piece("so", "the text beside a call", 4)),
        (REASONED, "<think>hm</think>ho", None),
        (REASONED, "ho", Piece("hm", "the reasoning", 4)),
        (REASONED, "hm", Piece("ho", "the assistant text", 4)),
        (Turn("assistant", "ho", reasoning=" "), "ho", None),
        # each piece is counted: two calls of one name are there twice
        (Turn("assistant", "", tool_calls=(ToolCall("f", "1"), ToolCall("f", "2"))), "f 1 f 2", None),
        (Turn("assistant", "", tool_calls=(ToolCall("f", "1"), ToolCall("f", "2"))), "f 1 2", Piece("f", "the call of 'f'", 4)),
        (Turn("assistant", "", tool_calls=(ToolCall("f", "1"), ToolCall("f", "1"))), "f f 1", Piece("1", "the argument '1' of 'f'", 4)),
        # arguments that are no JSON are looked for as they stand
        (Turn("assistant", "", tool_calls=(ToolCall("f", " x = 1 "),)), "f x = 1", None),
        (Turn("assistant", "", tool_calls=(ToolCall("f", " x = 1 "),)), "f x", Piece("x = 1", "the argument 'x = 1' of 'f'", 4)),
        (Turn("assistant", "", tool_calls=(ToolCall("f", json.dumps("z" * 50)),)), "f", Piece("z" * 50, f"the argument '{'z' * 40}' of 'f'", 4)),
        (Turn("assistant", "", tool_calls=(ToolCall("f", '[1, ["a", {"b": ""}]]'),)), "f 1 a b", None),
    ],
)  # fmt: skip
def test_the_first_piece_of_an_answer_that_is_lost(turn, text, lost):
    assert find_lost_of_answer(turn, 4, text) == lost


@pytest.mark.parametrize(
    ("words", "text", "found"),
    [
        ('say "a"', 'say \\"a\\"', True),
        ("caf\u00e9", "caf\\u00e9", True),
        ("it's \\n", "it's \\\\n", True),
        ("one\ntwo", "one\\ntwo", True),
        ("true", "True", True),
        ("false", "False", True),
        ("null", "None", True),
        ("none", "None", False),
        ("true", "yes", False),
        ("[1, 2]", "[1,2]", True),  # JSON that the template writes anew
        ('{"a": [1, "b"]}', "a=1,b", True),
        ('{"a": [1, "b"]}', "a=1", False),
        ('{"a": "\u00e9"}', "a=\\u00e9", True),
        ('"ab"', "ab", False),  # neither an object nor a list
        ("12", "1 2", False),
    ],
)
def test_a_piece_may_be_spelled_as_json_or_as_python(words, text, found):
    assert (find_lost_of_answer(Turn("assistant", words), 0, text) is None) == found


def test_spellings_are_counted_together():
    turn = Turn("assistant", "", tool_calls=(ToolCall("f", '["true", "true"]'),))
    assert find_lost_of_answer(turn, 0, "f true True") is None
    assert find_lost_of_answer(turn, 0, "f True True") is None
    assert find_lost_of_answer(turn, 0, "f True") == Piece("true", "the argument 'true' of 'f'", 0)


TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}


@pytest.mark.parametrize(
    ("turns", "tools", "text", "lost"),
    [
        ((Turn("user", "hi"), SAY), (), "hi ho", None),
        ((Turn("user", "hi"), SAY), (), "ho", Piece("hi", "the user text", 0)),
        ((Turn("user", "hi"), REASONED), (), "hi ho", None),  # earlier reasoning may be left out
        ((Turn("user", "hi"), SHORT), (), "hi f a b x y", Piece("3", "the argument '3' of 'f'", 1)),
        ((SHORT, TOLD), (), 'f a b "x y" 3 k v 2.5 none null yes True', None),
        (
            (SHORT, TOLD),
            (),
            'f a b "x y" 3 k 2.5 none null yes True',
            Piece(TOLD.content.strip(), "what the tool said", 1),
        ),
        ((), (TOOL,), "look", None),
        ((), (TOOL,), "", Piece("look", "the tool 'look'", -1)),
        ((), ({"name": "look"},), "", Piece("look", "the tool 'look'", -1)),
        ((), ({"function": None, "name": "look"},), "", None),
        ((), ({"function": "x", "name": "look"},), "", None),
        ((), ({"name": 3},), "", None),
        ((Turn("user", "look"),), (TOOL,), "look", Piece("look", "the user text", 0)),
        ((Turn("user", "look"),), (TOOL,), "look look", None),
    ],
)
def test_the_first_piece_before_an_answer_that_is_lost(turns, tools, text, lost):
    assert find_lost_of_context(turns, tools, text) == lost
