"""Pairs and labelled answers row by row: what becomes of every column, and which row is none."""

from __future__ import annotations

import pytest

from qlora_studio.core.conversation import Conversation, Turn
from qlora_studio.core.errors import Problem
from tests.data.formats.made import AT, A, S, U, read, reason, refused, turns_of

HI, HO, NO = (
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "ho"},
    {"role": "assistant", "content": "no"},
)
AND, SO = {"role": "user", "content": "and?"}, {"role": "assistant", "content": "so"}
HUMAN = "\n\nHuman: hi\n\nAssistant:"


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"chosen": "a", "rejected": "b"}, "the rows have 'chosen' and 'rejected'"),
        ({"chosen_response": "a", "rejected_response": "b"}, "the rows have 'chosen_response' and 'rejected_response'"),
        ({"chosen": "a"}, ""),
        ({"rejected": "b"}, ""),
        ({"chosen": None, "rejected": "b"}, ""),
    ],
)
def test_a_pair_has_both_answers(values, found):
    assert reason(values, "preference") == found


@pytest.mark.parametrize(
    ("values", "turns", "rejected"),
    [
        ({"prompt": "hi", "chosen": "ho", "rejected": "no"}, ((U, "hi"), (A, "ho")), ((A, "no"),)),
        ({"prompt": "hi", "chosen": "ho", "rejected": "no", "system": "s"}, ((S, "s"), (U, "hi"), (A, "ho")), ((A, "no"),)),
        ({"prompt": [HI], "chosen": [HO], "rejected": [NO]}, ((U, "hi"), (A, "ho")), ((A, "no"),)),
        ({"messages": [HI], "chosen": "ho", "rejected": "no"}, ((U, "hi"), (A, "ho")), ((A, "no"),)),
        ({"messages": "hi", "chosen": "ho", "rejected": "no"}, ((U, "hi"), (A, "ho")), ((A, "no"),)),
        ({"messages": HI, "chosen": "ho", "rejected": "no"}, ((U, "hi"), (A, "ho")), ((A, "no"),)),
        ({"instruction": "do", "input": "x", "chosen": "ho", "rejected": "no"}, ((U, "do\n\nx"), (A, "ho")), ((A, "no"),)),
        ({"instruction": "do", "input": "", "chosen": "ho", "rejected": "no"}, ((U, "do"), (A, "ho")), ((A, "no"),)),
        ({"question": "do", "chosen": "ho", "rejected": "no"}, ((U, "do"), (A, "ho")), ((A, "no"),)),
        # the prompt is what both lists begin with, and never the last turn of either
        ({"chosen": [HI, HO], "rejected": [HI, NO]}, ((U, "hi"), (A, "ho")), ((A, "no"),)),
        ({"chosen": [HI, HO], "rejected": [HI, HO]}, ((U, "hi"), (A, "ho")), ((A, "ho"),)),
        ({"chosen": [HI, HO, AND, SO], "rejected": [HI, HO]}, ((U, "hi"), (A, "ho"), (U, "and?"), (A, "so")), ((A, "ho"),)),
        ({"chosen": [HI, HO, AND, SO], "rejected": [HI, NO, AND, SO]}, ((U, "hi"), (A, "ho"), (U, "and?"), (A, "so")),
         ((A, "no"), (U, "and?"), (A, "so"))),
        # a prompt that stands in its own column and again in both lists stands once
        ({"prompt": "hi", "chosen": [HI, HO], "rejected": [HI, NO]}, ((U, "hi"), (A, "ho")), ((A, "no"),)),
        ({"prompt": "and?", "chosen": [HI, HO, AND, SO], "rejected": [HI, HO, AND, NO]},
         ((U, "hi"), (A, "ho"), (U, "and?"), (A, "so")), ((A, "no"),)),
        ({"prompt": "first", "chosen": [HI, HO], "rejected": [HI, NO]}, ((U, "first"), (U, "hi"), (A, "ho")), ((A, "no"),)),
        ({"prompt": [HI, HO, AND], "chosen": [AND, SO], "rejected": [AND, NO]},
         ((U, "hi"), (A, "ho"), (U, "and?"), (U, "and?"), (A, "so")), ((A, "no"),)),
        ({"chosen": f"{HUMAN} ho", "rejected": f"{HUMAN} no"}, ((U, "hi"), (A, "ho")), ((A, "no"),)),
    ],
)  # fmt: skip
def test_a_pair_is_its_prompt_and_two_ends(values, turns, rejected):
    assert read(values, "preference") == Conversation(turns=turns_of(*turns), rejected=turns_of(*rejected), source=AT)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"chosen": "a", "rejected": "b"},
         ("This pair has no prompt: the answers share no turn, and there is no column for it.", "Name its column: prompt=your_column.", "prompt")),
        ({"chosen": [HO], "rejected": [HO]},
         ("This pair has no prompt: the answers share no turn, and there is no column for it.", "Name its column: prompt=your_column.", "prompt")),
        ({"prompt": "p", "chosen": [HO], "rejected": [HI]},
         ("This does not end with an answer of the assistant.", "Fix or remove this row.", "rejected")),
        ({"prompt": "p", "chosen": [HI], "rejected": [HO]},
         ("This does not end with an answer of the assistant.", "Fix or remove this row.", "chosen")),
        ({"messages": ["hi"], "chosen": "ho", "rejected": "no"},
         ("This field is a list of texts without roles.", "Give each a role.", "messages")),
        ({"messages": [], "chosen": "ho", "rejected": "no"}, ("This conversation has no turns.", "Remove this row.", "messages")),
        ({"prompt": "p", "rejected": "b"}, ("This row has no such field.", "It has: prompt, rejected.", "chosen")),
        ({"prompt": "p", "chosen": "b"}, ("This row has no such field.", "It has: prompt, chosen.", "rejected")),
        ({"prompt": "p", "chosen": f"{HUMAN} ho\n\nHuman: bye", "rejected": f"{HUMAN} no"},
         ("This does not end with an answer of the assistant.", "Fix or remove this row.", "chosen")),
    ],
)  # fmt: skip
def test_what_is_no_pair_is_refused_with_its_column(values, problem):
    message, hint, field = problem
    assert refused(values, "preference") == Problem(message, hint, str(AT), field)


@pytest.mark.parametrize(
    ("values", "fits"),
    [
        ({"prompt": "p", "completion": "c", "label": True}, True),
        ({"question": "p", "answer": "c", "kto_tag": "bad"}, True),
        ({"messages": [HI, HO], "label": 1}, True),
        ({"completion": [HI, HO], "label": 0}, True),
        ({"prompt": "p", "completion": "c", "label": 2}, False),
        ({"prompt": "p", "completion": "c", "label": None}, False),
        ({"prompt": "p", "completion": "c"}, False),
        ({"completion": "c", "label": True}, False),
        ({"prompt": "p", "label": True}, False),
        ({"input": "p", "output": "c", "label": "true"}, True),
    ],
)
def test_a_labelled_row_has_an_answer_a_prompt_and_a_label_that_judges(values, fits):
    label = "kto_tag" if "kto_tag" in values else "label"
    expected = f"the rows have an answer and '{label}' that says whether it is good"
    assert reason(values, "kto") == (expected if fits else "")


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (True, True), (False, False), (1, True), (0, False), (1.0, True), (0.0, False), ("true", True), ("False", False),
        (" GOOD ", True), ("bad", False), ("1", True), ("0", False),
    ],
)  # fmt: skip
def test_a_label_may_be_written_in_any_of_these_ways(value, label):
    row = {"prompt": "hi", "completion": "ho", "label": value}
    assert read(row, "kto") == Conversation(turns=turns_of((U, "hi"), (A, "ho")), label=label, source=AT)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (2, "the number 2"),
        (0.5, "the number 0.5"),
        ("perhaps", "text"),
        (None, "null"),
        ([1], "a list"),
        ({}, "an object"),
    ],
)
def test_any_other_label_is_refused(value, kind):
    found = refused({"prompt": "hi", "completion": "ho", "label": value}, "kto")
    assert found == Problem(f"The label is {kind}, not true or false.", "Fix this row.", str(AT), "label")


@pytest.mark.parametrize(
    ("values", "turns"),
    [
        ({"messages": [HI, HO], "label": True}, ((U, "hi"), (A, "ho"))),
        ({"conversation": [HI, HO], "label": True, "system": "s"}, ((S, "s"), (U, "hi"), (A, "ho"))),
        ({"completion": [HI, HO], "label": True}, ((U, "hi"), (A, "ho"))),
        ({"prompt": [HI], "completion": [HO], "kto_tag": True}, ((U, "hi"), (A, "ho"))),
        ({"instruction": "do", "input": "x", "output": "ho", "label": True}, ((U, "do\n\nx"), (A, "ho"))),
    ],
)
def test_a_labelled_answer_stands_behind_its_prompt(values, turns):
    assert read(values, "kto") == Conversation(turns=turns_of(*turns), label=True, source=AT)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"completion": "ho", "label": True}, ("This row has no prompt.", "Fix or remove this row.", "prompt")),
        ({"completion": [HO], "label": True}, ("This row has no prompt.", "Fix or remove this row.", "prompt")),
        ({"prompt": "p", "completion": [HI], "label": True},
         ("This does not end with an answer of the assistant.", "Fix or remove this row.", "completion")),
        ({"messages": [HI], "label": True},
         ("This does not end with an answer of the assistant.", "Fix or remove this row.", "messages")),
        ({"label": True}, ("This field holds null where a list is needed.", "Fix or remove this row.", "messages")),
    ],
)  # fmt: skip
def test_what_is_no_labelled_answer_is_refused_with_its_column(values, problem):
    message, hint, field = problem
    assert refused(values, "kto") == Problem(message, hint, str(AT), field)


def test_tools_go_along():
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}
    for values, format in (
        ({"prompt": "hi", "chosen": "ho", "rejected": "no"}, "preference"),
        ({"prompt": "hi", "completion": "ho", "label": 1}, "kto"),
    ):
        assert read({**values, "tools": [tool], "id": 7}, format).tools == (tool,)
        assert read({**values, "tools": [tool], "id": 7}, format).extra == {"id": 7}


def test_calls_tell_turns_apart():
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": "{}"}]}
    plain = {"role": "assistant", "content": ""}
    made = read({"prompt": "p", "chosen": [HI, call, HO], "rejected": [HI, plain, HO]}, "preference")
    assert [len(made.turns), len(made.rejected)] == [4, 2]
    assert isinstance(made.rejected[0], Turn) and not made.rejected[0].tool_calls
