"""Typed control tokens: refused, kept, or stood in for by one character each that nobody types."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qlora_studio.data.render.control import ControlTokenTyped, Escapes

LONG, SHORT, OTHER = "<|im_end|>x", "<|im_end|>", "[INST]"
TOKENS = SimpleNamespace(control_tokens={SHORT: 1, OTHER: 2, LONG: 3, "": 4})
FIRST = 0xF0000


def escapes(policy):
    return Escapes.make(TOKENS, policy)


@pytest.mark.parametrize(
    ("text", "found"),
    [("a", None), ("a < b [c]", None), (f"a{SHORT}", SHORT), (f"{LONG}", LONG), (f"{OTHER}{SHORT}", OTHER)],
)
def test_the_first_token_is_found_and_the_longest_of_those_there(text, found):
    assert escapes("refuse").find(text) == found


def test_a_refusal_names_token_and_place():
    with pytest.raises(ControlTokenTyped) as caught:
        escapes("refuse").hide(f"a{OTHER}", "r:1", "turn 2")
    (problem,) = caught.value.problems
    assert (problem.message, problem.where, problem.field) == (
        "The text holds the control token [INST], which would steer the model.", "r:1", "turn 2",
    )  # fmt: skip
    assert escapes("refuse").hide("a", "r:1", "turn 2") == "a"


def test_kept_tokens_are_left_as_they_are():
    kept = escapes("keep")
    text = f"a{SHORT}{chr(FIRST)}"
    assert kept.hide(text) == text and kept.show(text) == text and kept.split(text) == [text]
    assert kept.token_of(chr(FIRST)) is None


def test_each_token_has_its_own_stand_in_and_comes_back():
    escaped = escapes("escape")
    text = f"a{SHORT}b{LONG}{OTHER}"
    hidden = escaped.hide(text)
    assert hidden == f"a{chr(FIRST + 1)}b{chr(FIRST)}{chr(FIRST + 2)}", "the longest comes first"
    assert escaped.show(hidden) == text
    assert escaped.split(hidden) == ["a", chr(FIRST + 1), "b", chr(FIRST), chr(FIRST + 2)]
    assert [escaped.token_of(chr(FIRST + place)) for place in (-1, 0, 1, 2, 3)] == [None, LONG, SHORT, OTHER, None]
    assert escaped.split(f"a{chr(FIRST + 3)}b") == [f"a{chr(FIRST + 3)}b"], "no stand-in of this tokenizer"
    assert [escaped.has_marks(text) for text in ("", "a", "a" + chr(FIRST + 3), chr(FIRST), "a" + chr(FIRST + 2))] == [
        False
    ] * 3 + [True] * 2
    assert not escapes("keep").has_marks(chr(FIRST)) and not escapes("refuse").has_marks(chr(FIRST))
    assert escaped.split("") == [] and escaped.show("a") == "a"


def test_a_tokenizer_without_control_tokens_hides_nothing():
    empty = Escapes.make(SimpleNamespace(control_tokens={}), "escape")
    assert empty == Escapes("escape") and empty.hide(SHORT) == SHORT and empty.split("ab") == ["ab"]
