"""Rows of several answers: choices, ranks, preferred outputs and calls, each whole, and where each is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qlora_studio.core.conversation import Conversation, ToolCall, Turn
from qlora_studio.core.errors import Problem
from tests.data.formats.made import AT, A, S, U, read, reason, refused, turns_of

ASKED: dict[str, Any] = {"question": "Which?"}


@pytest.mark.parametrize(
    ("values", "prompt", "answer"),
    [
        ({"choices": ["x", "y"], "answer": 0}, "Which?\n\nA. x\nB. y", "A. x"),
        ({"choices": ["x", "y"], "answer": 1}, "Which?\n\nA. x\nB. y", "B. y"),
        ({"options": ["x", "y"], "answerKey": "B"}, "Which?\n\nA. x\nB. y", "B. y"),
        ({"options": ["x", "y"], "answer_index": "x"}, "Which?\n\nA. x\nB. y", "A. x"),
        ({"choices": {"text": ["x", "y"], "label": [1, 2, 3]}, "label": "2"}, "Which?\n\n1. x\n2. y", "2. y"),
        ({"choices": {"text": ["x", "y"]}, "answer": "B"}, "Which?\n\nA. x\nB. y", "B. y"),
        ({"choices": ["B", "A"], "answer": "B"}, "Which?\n\nA. B\nB. A", "B. A"),  # a letter before a text
    ],
)
def test_choices_are_lines_behind_their_letters(values, prompt, answer):
    assert read(ASKED | values) == Conversation(turns=turns_of((U, prompt), (A, answer)), source=AT)
    made = read(ASKED | values | {"system": "s", "id": 1}, "multiple-choice")
    assert made == Conversation(turns=turns_of((S, "s"), (U, prompt), (A, answer)), source=AT, extra={"id": 1})


NO_TEXTS, NO_LABEL = "The choices are not a list of texts.", "The choices do not all have a label."
NO_ANSWER = "The answer is none of the choices."


@pytest.mark.parametrize(
    ("values", "message", "field"),
    [
        ({"choices": ["x", "y"], "answer": 2}, NO_ANSWER, "answer"),
        ({"choices": ["x", "y"], "answer": -1}, NO_ANSWER, "answer"),
        ({"choices": ["x", "y"], "answer": True}, NO_ANSWER, "answer"),
        ({"options": ["x", "y"], "answerKey": "C"}, NO_ANSWER, "answerKey"),
        ({"choices": [], "answer": 0}, NO_TEXTS, "choices"),
        ({"options": ["x", 1], "answer": 0}, NO_TEXTS, "options"),
        ({"choices": "xy", "answer": 0}, NO_TEXTS, "choices"),
        ({"choices": {"label": ["A"]}, "answer": 0}, NO_TEXTS, "choices"),
        ({"choices": {"text": ["x", "y"], "label": ["A"]}, "answer": 0}, NO_LABEL, "choices"),
        ({"choices": {"text": ["x", "y"], "label": "AB"}, "answer": 0}, NO_LABEL, "choices"),
        ({"choices": ["x"] * 27, "answer": 0}, NO_LABEL, "choices"),
        ({"answer": 0}, NO_TEXTS, "choices"),
        ({"choices": ["x"]}, NO_ANSWER, "answer"),
    ],
)
def test_choices_that_do_not_add_up_are_refused(values, message, field):
    assert refused(ASKED | values, "multiple-choice") == Problem(message, "Fix this row.", str(AT), field)


@pytest.mark.parametrize(
    ("values", "fits"),
    [
        (ASKED | {"choices": [], "answer": 0}, "the rows have 'question', 'choices' and 'answer'"),
        (ASKED | {"options": {}, "label": 0}, "the rows have 'question', 'options' and 'label'"),
        (ASKED | {"choices": "x", "answer": 0}, ""),
        (ASKED | {"choices": []}, ""),
        (ASKED | {"answer": 0}, ""),
        ({"choices": [], "answer": 0}, ""),
    ],
)
def test_choices_need_a_question_and_an_answer(values, fits):
    assert reason(values, "multiple-choice") == fits


def answers(*ranks, key="rank"):
    return [{"text": f"a{place}", key: rank} for place, rank in enumerate(ranks)]


@pytest.mark.parametrize(
    ("values", "best", "worst", "extra"),
    [
        ({"completions": answers(2, 1, 3)}, "a1", "a2", {"completions[0]": {"text": "a0", "rank": 2}}),
        ({"answers": answers(2, 7, key="score")}, "a1", "a0", {}),
        ({"responses": answers(0.5, 0.25, key="reward")}, "a0", "a1", {}),
        ({"completions": answers(1, 1, 2)}, "a0", "a2", {"completions[1]": {"text": "a1", "rank": 1}}),
        ({"completions": [{"content": "x", "rank": 1, "score": 0}, {"output": "y", "rank": 2, "score": 9}]}, "x", "y", {}),
        ({"completions": [{"text": 1, "value": "x", "rating": 1}, {"value": "y", "rating": 2}]}, "y", "x", {}),
    ],
)  # fmt: skip
def test_the_best_is_chosen_the_worst_rejected_and_the_rest_kept(values, best, worst, extra):
    assert read({"prompt": "p", "system": "s"} | values) == Conversation(
        turns=turns_of((S, "s"), (U, "p"), (A, best)), rejected=turns_of((A, worst)), source=AT, extra=extra
    )


UNRANKED = Problem("Not every answer has a text and a rank or score.", "Fix this row.", str(AT), "completions")


@pytest.mark.parametrize(
    "items",
    [answers(1), [], [*answers(1, 2), {"text": "x"}], [*answers(1, 2), {"rank": 3}], [*answers(1, 2), "x"],
     answers(1, True), answers(1, "2")],
)  # fmt: skip
def test_answers_without_ranks_are_refused(items):
    assert refused({"prompt": "p", "completions": items}, "ranked") == UNRANKED
    assert reason({"prompt": "p", "completions": items}, "ranked") == ""


def test_answers_that_rank_alike_are_refused():
    assert refused({"prompt": "p", "completions": answers(1, 1)}, "ranked") == Problem(
        "All answers rank alike: none is better.", "Leave this row out.", str(AT), "completions"
    )
    two = {"query": "p", "responses": answers(0, 0)}
    assert reason(two, "ranked") == "the rows have a prompt and 'responses', each with a rank or a score"
    assert reason({"responses": answers(0, 1)}, "ranked") == ""
    assert refused({"responses": answers(0, 1)}, "ranked").field == "prompt"
    assert refused({"prompt": "p"}, "ranked").field == "completions"


GIVEN = {"messages": [{"role": "user", "content": "hi"}], "n": 1}
GOOD, BAD = [{"role": "assistant", "content": "ho"}], [{"role": "assistant", "content": "no"}]


def test_preferred_outputs_are_whole():
    values = {"input": GIVEN, "preferred_output": GOOD, "non_preferred_output": BAD, "id": 1}
    assert read(values) == Conversation(
        turns=turns_of((U, "hi"), (A, "ho")), rejected=turns_of((A, "no")), source=AT, extra={"id": 1, "input.n": 1}
    )
    for change, field in (
        ({"preferred_output": GIVEN["messages"]}, "preferred_output"),
        ({"non_preferred_output": []}, "non_preferred_output"),
        ({"preferred_output": [*GOOD, {"role": "assistant"}]}, "preferred_output[1].content"),
        ({"input": 3}, "messages"),
    ):
        assert refused(values | change, "preferred").field == field


@pytest.mark.parametrize("missing", ["input", "preferred_output", "non_preferred_output"])
def test_preferred_outputs_need_all_three(missing):
    values = {"input": GIVEN, "preferred_output": GOOD, "non_preferred_output": BAD}
    assert reason(values, "preferred") == "the rows have 'input', 'preferred_output' and 'non_preferred_output'"
    assert reason({name: value for name, value in values.items() if name != missing}, "preferred") == ""


CALLS = [{"name": "f\u00fc", "arguments": {"x": "\u00fc"}}]
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}


@pytest.mark.parametrize("written", [CALLS, json.dumps(CALLS), " " + json.dumps(CALLS)])
def test_calls_answer_a_query(written):
    values = {"query": "q", "answers": written, "tools": [TOOL]}
    assert read(values) == Conversation(
        turns=(Turn(U, "q"), Turn(A, "", tool_calls=(ToolCall("f\u00fc", '{"x": "\u00fc"}'),))),
        tools=(TOOL,),
        source=AT,
    )
    assert read(values | {"system": "s"}).turns[0] == Turn(S, "s")
    for missing in values:
        assert reason({name: value for name, value in values.items() if name != missing}, "function-calls") == ""


def test_calls_are_a_list_of_objects():
    for answers_, fits in (("[{", True), ("[1]", False), ("f", False), (3, False), ([], True)):
        assert bool(reason({"query": "q", "tools": [], "answers": answers_}, "function-calls")) == fits
