"""Formats by name: how sure a guess is, what a mapping may name, which rows are refused as another format or as media."""

from __future__ import annotations

import pytest

from qlora_studio.core.conversation import Conversation, Source
from qlora_studio.core.dataset import FormatGuess
from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.data.formats.registry import (
    Converted,
    check_columns,
    convert,
    convert_all,
    detect,
    find_format,
    recognise,
)
from qlora_studio.data.readers.rows import Row
from tests.data.formats.made import A, U, turns_of

PAIR, ALPACA = {"prompt": "p", "completion": "c"}, {"instruction": "i", "output": "o"}


def rows(*values):
    return [Row("r.jsonl", line, value) for line, value in enumerate(values, 1)]


def test_the_format_that_most_rows_have_is_the_guess():
    found = detect(rows(ALPACA, PAIR, {"x": 1}, PAIR))
    assert found == FormatGuess(
        format="prompt-completion", confidence=0.5, reason="the rows have 'prompt' and 'completion'"
    )
    assert detect(rows(ALPACA, PAIR)).format == "alpaca", "of equals the first"
    assert recognise(rows({"x": 1})[0], {}) == ("", "")


@pytest.mark.parametrize(
    ("values", "message", "where"),
    [
        ([], "There is no row in this file.", ""),
        ([{"a": 1, "b": 2}], "The format of these rows is not known; their fields: a, b.", "r.jsonl:1"),
        ([{}, {"a": 1}], "The format of these rows is not known; their fields: none.", "r.jsonl:1"),
    ],
)
def test_rows_of_no_known_format_are_refused_with_their_fields(values, message, where):
    with pytest.raises(StudioError) as caught:
        detect(rows(*values))
    (problem,) = caught.value.problems
    assert (problem.message, problem.where) == (message, where)


def test_a_format_that_is_not_there_is_answered_with_those_there_are():
    with pytest.raises(StudioError) as caught:
        find_format("x")
    (problem,) = caught.value.problems
    assert (problem.message, problem.field) == ("There is no format 'x'.", "data.format")
    assert problem.hint.startswith("There are: tokens, segments,") and problem.hint.endswith("question-answer, text.")


@pytest.mark.parametrize(
    ("values", "columns", "problem"),
    [
        (PAIR, {"prompt": "prompt", "role.doctor": "assistant", "turn.role": "who", "turn.content": "x"}, None),
        (PAIR, {"prompt": "p"}, Problem("There is no column 'p'.", "There are: prompt, completion.", "r.jsonl:1", "p")),
        ({}, {"prompt": "p"}, Problem("There is no column 'p'.", "There are: none.", "r.jsonl:1", "p")),
        (PAIR, {"answer": "p"}, Problem(
            "The format 'prompt-completion' has no part 'answer'.", "It has: prompt, completion, system, tools.", "", "answer"
        )),
        ({"in": {"q": "x"}}, {"prompt": "in.q"}, None),
        ({"in": {"q": "x"}}, {"prompt": "in.z"}, Problem("There is no column 'in.z'.", "There are: in.", "r.jsonl:1", "in.z")),
    ],
)  # fmt: skip
def test_a_mapping_names_parts_and_columns_that_exist(values, columns, problem):
    entry, row = find_format("prompt-completion"), rows(values)[0]
    if problem is None:
        check_columns(entry, columns, row)
        return
    with pytest.raises(StudioError) as caught:
        check_columns(entry, columns, row)
    assert caught.value.problems == (problem,)


def test_rows_are_converted_one_by_one_and_problems_keep_their_place():
    items = [*rows(PAIR, {"prompt": "p"}), "unseen", *rows(ALPACA)]
    made = list(convert_all(items, find_format("prompt-completion"), {}))
    assert made[0] == Converted(Conversation(turns=turns_of((U, "p"), (A, "c")), source=Source("r.jsonl", 1)), 1)
    assert made[1] == Problem("This row has no such field.", "It has: prompt.", "r.jsonl:2", "completion")
    assert made[2] == "unseen"
    assert made[3] == Problem(
        "This row has another format than the file (prompt-completion): the rows have 'instruction' and 'output'.",
        "Put such rows into a file of their own; they are read as alpaca.",
        "r.jsonl:1",
        "prompt",
    )


def test_threads_are_joined():
    lines = [
        {"id": "a", "parent_id": None, "role": "user", "text": "x"},
        {"id": "b", "parent_id": "a", "role": "bot", "text": "y"},
    ]
    (made,) = convert_all([*rows(*lines)], find_format("thread"), {})
    assert (made.rows, made.conversation.turns) == (2, turns_of((U, "x"), (A, "y")))
    (lost,) = convert_all(rows({**lines[0], "parent_id": "z"}), find_format("thread"), {})
    assert isinstance(lost, Problem)


@pytest.mark.parametrize(
    ("values", "refused"),
    [
        ({"image": "a.jpg", "prompt": "see <image>"}, "image"),
        ({"images": ["a.jpg"], "prompt": "see <image>"}, "images"),
        ({"audio": "a.wav", "prompt": "hear <audio>"}, "audio"),
        ({"videos": ["a"], "prompt": "watch <video>"}, "videos"),
        ({"prompt": "see <image>"}, ""),
        ({"image": "a.jpg", "prompt": "see it"}, ""),
        ({"image": None, "prompt": "see <image>"}, ""),
        ({"images": [], "prompt": "see <image>"}, ""),
        ({"image": "a.jpg", "prompt": "hear <audio>"}, ""),
    ],
)
def test_text_around_a_picture_or_a_sound_is_refused(values, refused):
    row = rows({**values, "completion": "c"})[0]
    if not refused:
        assert convert(row, find_format("prompt-completion"), {}).turns[0].content == values["prompt"]
        return
    with pytest.raises(StudioError) as caught:
        convert(row, find_format("prompt-completion"), {})
    kind = refused.removesuffix("s")
    assert caught.value.problems == (
        Problem(
            f"This row holds {kind} data, and this studio trains text.", "Leave such rows out.", "r.jsonl:1", refused
        ),
    )
