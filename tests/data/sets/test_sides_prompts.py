"""What a row begins by asking, by which it goes to one side of a split, and when both sides have it."""

from __future__ import annotations

import hashlib

import pytest

from qlora_studio.core.conversation import Conversation, Pretokenised, Segment, Source, Turn
from qlora_studio.core.errors import LawBroken
from qlora_studio.data.sets.sides import Sides, first_prompt, prompt_hash

S, U, A = Turn("system", "s"), Turn("user", " q \n1"), Turn("assistant", "a")


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        (Conversation(turns=(S, U, A, Turn("user", "q2"))), " q \n1"),
        (Conversation(turns=(A, S)), "a"),
        (Conversation(text="raw"), "raw"),
        (Conversation(text=""), ""),
        (Conversation(), ""),
        (Conversation(segments=(Segment("a", True), Segment("b", False), Segment("c", False))), "b"),
        (Conversation(segments=(Segment("a", True), Segment("b", True))), "a"),
        (Conversation(tokens=Pretokenised((7, 8, 9), (-100, -100, 9))), "7,8"),
        (Conversation(tokens=Pretokenised((7, 8, 9), (-100, 8, -100))), "7"),
        (Conversation(tokens=Pretokenised((7, 8, 9), (7, 8, 9))), "7,8,9"),
        (Conversation(tokens=Pretokenised((7, 8), (-100, -100))), "7,8"),
    ],
)
def test_the_first_prompt_of_a_row(row, prompt):
    assert first_prompt(row) == prompt
    digest = hashlib.blake2b(" ".join(prompt.split()).encode(), digest_size=8).digest()
    assert prompt_hash(row) == int.from_bytes(digest, "little")


def asked(prompt, line=1):
    return Conversation(turns=(S, Turn("user", prompt), A), source=Source("r", line))


def test_a_prompt_on_both_sides_breaks_the_law_and_is_named():
    sides = Sides()
    assert list(sides.watch([asked("a"), asked("b")], "train")) == [asked("a"), asked("b")]
    sides.note(asked("c", 7), "eval")
    sides.check()
    for line, prompt in ((8, " b "), (9, "b"), (10, "a")):
        sides.note(asked(prompt, line), "eval")
    with pytest.raises(LawBroken) as caught:
        sides.check()
    message = "2 prompts of the evaluation rows would be trained as well; the first is that of r:8."
    assert caught.value.problems[0].message == message


@pytest.mark.parametrize("kind", ["turns", "text"])
def test_one_prompt_is_one_prompt(kind):
    def row(words):
        return asked(words, 3) if kind == "turns" else Conversation(text=words, source=Source("r", 3))

    sides = Sides()
    sides.note(row("same "), "train")
    sides.note(row("other"), "eval")
    sides.check()
    sides.note(row("same"), "eval")
    with pytest.raises(
        LawBroken, match=r"^1 prompt of the evaluation rows would be trained as well; the first is that of r:3\."
    ):
        sides.check()


def test_what_a_user_says_is_no_raw_text():
    sides = Sides()
    sides.note(asked("same"), "train")
    sides.note(Conversation(text="same"), "eval")
    sides.check()


def test_later_rows_are_added_and_the_earlier_place_is_kept():
    first, later = Sides(), Sides()
    first.note(asked("a", 1), "eval")
    later.note(asked("a", 2), "eval")
    later.note(asked("a", 3), "train")
    first.add(later)
    with pytest.raises(LawBroken, match="the first is that of r:1"):
        first.check()
