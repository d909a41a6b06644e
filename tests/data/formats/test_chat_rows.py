"""Lists of turns row by row: where the list may stand, what counts as one, and where the system prompt may be."""

from __future__ import annotations

import json

import pytest

from qlora_studio.core.conversation import Conversation, Turn
from qlora_studio.core.errors import Problem
from qlora_studio.data.formats.chat import same_turn
from tests.data.formats.made import AT, A, S, U, read, reason, refused, turns_of

HI, HO = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}
FROM = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
TURNS = turns_of((U, "hi"), (A, "ho"))


@pytest.mark.parametrize(
    ("format", "values", "column"),
    [
        ("messages", {"messages": [HI, HO]}, "messages"),
        ("messages", {"chat": json.dumps([HI, HO])}, "chat"),
        ("messages", {"chat": " " + json.dumps([HI, HO])}, "chat"),
        ("messages", {"turns": ["x", {}, 3, HI]}, "turns"),  # among the first four
        ("messages", {"turns": ["x", {}, 3, 4, HI]}, ""),
        ("messages", {"messages": '[1, "x"]'}, ""),
        ("messages", {"messages": 'the "role" of'}, ""),
        ("messages", {"messages": FROM}, ""),
        ("messages", {"messages": HI}, ""),
        ("messages", {}, ""),
        ("sharegpt", {"conversations": FROM}, "conversations"),
        ("sharegpt", {"conversations": FROM, "messages": [HI]}, "conversations"),
        ("sharegpt", {"conversation": json.dumps(FROM)}, "conversation"),
        ("sharegpt", {"conversations": [HI]}, ""),
        ("dialogue", {"dialog": ["a", "b"]}, "dialog"),
        ("dialogue", {"texts": ["a", "b"]}, "texts"),
        ("dialogue", {"dialog": ["a"]}, ""),
        ("dialogue", {"dialog": ["a", 1]}, ""),
        ("dialogue", {"dialog": "ab"}, ""),
    ],
)
def test_a_list_of_turns_is_known_by_its_first_turns(format, values, column):
    found = reason(values, format)
    assert found.partition(" is a list of ")[0] == (f"'{column}'" if column else "")


def test_mapped_names_of_role_count():
    assert reason({"messages": [{"who": "x"}]}, "messages", {"turn.role": "who"})
    assert not reason({"messages": [{"who": "x"}]}, "messages")


@pytest.mark.parametrize("column", ["system", "system_prompt", "systemInstruction", "system_instruction"])
def test_a_system_prompt_may_stand_in_a_column_of_its_own(column):
    for value in ("s", {"role": "system", "parts": [{"text": "s"}]}):
        assert read({"messages": [HI, HO], column: value, "id": 1}) == Conversation(
            turns=(Turn(S, "s"), *TURNS), source=AT, extra={"id": 1}
        )


@pytest.mark.parametrize("value", [None, ""])
def test_an_empty_system_prompt_is_none(value):
    assert read({"messages": [HI, HO], "system": value}) == Conversation(turns=TURNS, source=AT)


def test_sharegpt_and_dialogues_are_whole():
    assert read({"conversations": FROM, "system": "s", "n": 1}) == Conversation(
        turns=(Turn(S, "s"), *TURNS), source=AT, extra={"n": 1}
    )
    assert read({"dialog": ["a", "b", "c"], "n": 1}) == Conversation(
        turns=turns_of((U, "a"), (A, "b"), (U, "c")), source=AT, extra={"n": 1}
    )


@pytest.mark.parametrize(
    ("format", "values", "problem"),
    [
        ("messages", {"chat": []}, ("This conversation has no turns.", "Remove this row.", "chat")),
        ("messages", {}, ("This field holds null where a list is needed.", "Fix or remove this row.", "messages")),
        ("sharegpt", {}, ("This field holds null where a list is needed.", "Fix or remove this row.", "conversations")),
        ("messages", {"messages": [HI, 3]}, ("This turn is the number 3, not an object.", "Fix or remove this row.", "messages[1]")),
        ("dialogue", {"texts": ["a", 3]}, ("Not every turn of this dialogue is text.", "Fix this row.", "texts[1]")),
        ("dialogue", {"dialog": []}, ("This conversation has no turns.", "Remove this row.", "dialog")),
        ("dialogue", {}, ("This field holds null where a list is needed.", "Fix or remove this row.", "dialog")),
        ("messages", {"messages": [HI], "system": 3}, ("This field holds the number 3 where text is needed.", "Fix or remove this row.", "system")),
        ("prompt-completion", {"prompt": ["a", "b"], "completion": "c"}, ("This field is a list of texts without roles.", "Give each a role.", "prompt")),
        ("prompt-completion", {"prompt": [], "completion": "c"}, ("This conversation has no turns.", "Remove this row.", "prompt")),
        ("prompt-completion", {"prompt": "p", "completion": [HI]}, ("This does not end with an answer of the assistant.", "Fix or remove this row.", "completion")),
        ("prompt-completion", {"prompt": None, "completion": "c"}, ("This field holds null where text is needed.", "Fix or remove this row.", "prompt")),
        ("prompt-completion", {"prompt": 3, "completion": "c"}, ("This field holds the number 3 where a list is needed.", "Fix or remove this row.", "prompt")),
    ],
)  # fmt: skip
def test_what_is_no_list_of_turns_is_refused_with_its_place(format, values, problem):
    message, hint, field = problem
    assert refused(values, format) == Problem(message, hint, str(AT), field)


def test_turns_are_the_same_where_they_say_the_same():
    one = Turn(U, "a", name="x")
    assert same_turn(one, Turn(U, "a")) and not same_turn(one, Turn(A, "a")) and not same_turn(one, Turn(U, "b"))
