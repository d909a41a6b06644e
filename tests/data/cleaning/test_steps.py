"""What decides that two rows are copies: all they say, and all that decides what is learned of them."""

from dataclasses import replace

import pytest

from qlora_studio.core.conversation import Conversation, Pretokenised, Segment, Source, ToolCall, Turn
from qlora_studio.data.cleaning.steps import all_text, all_trained

AT = Source("rows.jsonl", 1)
CHAT = Conversation(turns=(Turn("user", "hi"), Turn("assistant", "ho")), source=AT)
TEXT = Conversation(text="once", source=AT)
SEGMENTS = Conversation(segments=(Segment("a", False), Segment("b", True)), source=AT)
TOKENS = Conversation(tokens=Pretokenised((1, 2), (-100, 2)), source=AT)
WORDS = {
    "chat": (CHAT, replace(CHAT, turns=(CHAT.turns[0], replace(CHAT.turns[1], content="hu")))),
    "role": (CHAT, replace(CHAT, turns=(CHAT.turns[0], replace(CHAT.turns[1], role="user")))),
    "reasoning": (CHAT, replace(CHAT, turns=(CHAT.turns[0], replace(CHAT.turns[1], reasoning="so")))),
    "tool call": (
        CHAT,
        replace(CHAT, turns=(CHAT.turns[0], replace(CHAT.turns[1], tool_calls=(ToolCall("f", "{}"),)))),
    ),
    "rejected": (CHAT, replace(CHAT, rejected=(Turn("assistant", "no"),))),
    "text": (TEXT, replace(TEXT, text="twice")),
    "segment": (SEGMENTS, replace(SEGMENTS, segments=(Segment("a", False), Segment("c", True)))),
    "which segment is trained": (SEGMENTS, replace(SEGMENTS, segments=(Segment("a", True), Segment("b", True)))),
    "token": (TOKENS, replace(TOKENS, tokens=Pretokenised((1, 3), (-100, 2)))),
    "label of a token": (TOKENS, replace(TOKENS, tokens=Pretokenised((1, 2), (1, 2)))),
}
LEARNED = {
    "mask": replace(CHAT, turns=(CHAT.turns[0], replace(CHAT.turns[1], train=False))),
    "tools": replace(CHAT, tools=({"name": "f"},)),
    "label": replace(CHAT, label=True),
}


@pytest.mark.parametrize("name", WORDS)
def test_rows_that_say_something_else_are_not_alike(name):
    one, other = WORDS[name]
    assert all_text(one) == all_text(replace(one, source=Source("other.jsonl", 9)))
    assert all_text(one) != all_text(other)


@pytest.mark.parametrize("name", LEARNED)
def test_rows_of_which_something_else_is_learned_are_no_copies(name):
    other = LEARNED[name]
    assert all_text(other) == all_text(CHAT)
    assert all_trained(other, all_text(other)) != all_trained(CHAT, all_text(CHAT))


def test_a_rejected_answer_is_not_one_that_was_given():
    given = replace(CHAT, turns=(*CHAT.turns, Turn("assistant", "no")))
    rejected = replace(CHAT, rejected=(Turn("assistant", "no"),))
    assert all_text(given) == all_text(rejected)
    assert all_trained(given, all_text(given)) != all_trained(rejected, all_text(rejected))


def test_of_raw_text_the_text_is_all():
    assert all_trained(TEXT, all_text(TEXT)) == "once"
