"""A row that says nothing but its words."""

from __future__ import annotations

from qlora_studio.core.conversation import NOWHERE, Conversation, Source, ToolCall, Turn


def test_a_source_is_a_file_and_a_line():
    assert str(Source("data/a.jsonl", 12)) == "data/a.jsonl:12" and Source("", 0) == NOWHERE


def test_a_row_has_no_more_than_it_is_given():
    assert Conversation() == Conversation((), None, (), None, (), (), None, Source("", 0), "", {})
    assert Turn("user", "Hi") == Turn("user", "Hi", None, (), None, None, None)
    assert ToolCall("find", "{}").id is None
    one, other = Conversation(), Conversation()
    one.extra["a"] = 1
    assert other.extra == {}, "each row keeps its own"
