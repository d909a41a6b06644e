"""What people bring beside the usual shapes: recognised whole, or refused by row in a sentence that says what to do."""

import json

import pytest

from qlora_studio.core.conversation import ToolCall, Turn
from qlora_studio.core.errors import StudioError
from qlora_studio.data.formats.registry import check_columns, convert, detect, find_format
from qlora_studio.data.readers.rows import Row

U, A, S, T = "user", "assistant", "system", "tool"


def turns_of(*turns):
    return tuple(Turn(role, content) for role, content in turns)


def made_of(values, columns=None):
    row = Row("rows.jsonl", 3, values)
    guess = detect([row], columns)
    return guess.format, convert(row, find_format(guess.format), columns or {})


TOOL = {"name": "f", "description": "d", "parameters": {"x": {"type": "int"}}}
SHAPES = {
    "kto with 1": ({"prompt": "hi", "completion": "ho", "label": 1}, "kto", turns_of((U, "hi"), (A, "ho"))),
    "kto with 0": ({"prompt": "hi", "completion": "no", "label": 0}, "kto", turns_of((U, "hi"), (A, "no"))),
    "dolly": (
        {"instruction": "Who?", "context": "A mill.", "response": "It.", "category": "qa"},
        "alpaca",
        turns_of((U, "Who?\n\nA mill."), (A, "It.")),
    ),
    "squad": (
        {"context": "A mill.", "question": "What?", "answers": {"text": ["A mill", "mill"], "answer_start": [0, 2]}},
        "question-answer",
        turns_of((U, "A mill.\n\nWhat?"), (A, "A mill")),
    ),
    "problem and solution": (
        {"problem": "1+1?", "generated_solution": "It is 2.", "expected_answer": "2"},
        "question-answer",
        turns_of((U, "1+1?"), (A, "It is 2.")),
    ),
    "instruction and code": (
        {"instruction": "Add.", "code": "a + b"},
        "alpaca",
        turns_of((U, "Add."), (A, "a + b")),
    ),
    "a number as answer": ({"question": "1+1?", "answer": 2}, "question-answer", turns_of((U, "1+1?"), (A, "2"))),
    "multiple choice by number": (
        {"question": "Which?", "choices": ["mill", "hill"], "answer": 1, "subject": "x"},
        "multiple-choice",
        turns_of((U, "Which?\n\nA. mill\nB. hill"), (A, "B. hill")),
    ),
    "multiple choice by letter": (
        {"question": "Which?", "choices": {"text": ["mill", "hill"], "label": ["1", "2"]}, "answerKey": "2"},
        "multiple-choice",
        turns_of((U, "Which?\n\n1. mill\n2. hill"), (A, "2. hill")),
    ),
    "gemini": (
        {
            "systemInstruction": {"role": "system", "parts": [{"text": "Be brief."}]},
            "contents": [{"role": "user", "parts": [{"text": "hi"}]}, {"role": "model", "parts": [{"text": "ho"}]}],
        },
        "messages",
        turns_of((S, "Be brief."), (U, "hi"), (A, "ho")),
    ),
    "typed parts with value": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "value": "hi"}]},
                {"role": "assistant", "content": [{"type": "text", "value": "ho"}]},
            ]
        },
        "messages",
        turns_of((U, "hi"), (A, "ho")),
    ),
}


@pytest.mark.parametrize(("values", "format", "turns"), SHAPES.values(), ids=SHAPES.keys())
def test_a_shape_is_recognised(values, format, turns):
    name, made = made_of(values)
    assert (name, made.turns) == (format, turns)


def test_labels_of_0_and_1_say_which_answer_is_bad():
    assert [made_of({"prompt": "a", "completion": "b", "label": label})[1].label for label in (0, 1, "0", 1.0)] == [
        False, True, False, True,
    ]  # fmt: skip


def test_what_a_shape_does_not_use_is_kept():
    _, made = made_of(SHAPES["squad"][0])
    assert made.extra == {"answers.answer_start": [0, 2], "answers[1]": "mill"}


def test_preferred_outputs():
    values = {
        "input": {"messages": [{"role": "user", "content": "hi"}], "tools": [TOOL], "parallel_tool_calls": True},
        "preferred_output": [{"role": "assistant", "content": "ho"}],
        "non_preferred_output": [{"role": "assistant", "content": "no"}],
    }
    name, made = made_of(values)
    assert (name, made.turns, made.rejected) == ("preferred", turns_of((U, "hi"), (A, "ho")), turns_of((A, "no")))
    assert made.tools == ({"type": "function", "function": TOOL},)
    assert made.extra == {"input.parallel_tool_calls": True}


def test_function_calls():
    calls = [{"name": "f", "arguments": {"x": 1}}, {"name": "f", "arguments": {"x": 2}}]
    for answers, tools in ((json.dumps(calls), json.dumps([TOOL])), (calls, [TOOL])):
        name, made = made_of({"id": 1, "query": "do", "answers": answers, "tools": tools})
        assert name == "function-calls"
        assert made.turns == (
            Turn(U, "do"),
            Turn(A, "", tool_calls=(ToolCall("f", '{"x": 1}'), ToolCall("f", '{"x": 2}'))),
        )
        assert made.tools == ({"type": "function", "function": TOOL},)


def test_talks_written_as_one_text():
    before = "\n\nHuman: hi\n\nAssistant: ho\n\nHuman: and?\n\nAssistant:"
    name, made = made_of({"chosen": f"{before} yes", "rejected": f"{before} no"})
    assert name == "preference"
    assert made.turns == turns_of((U, "hi"), (A, "ho"), (U, "and?"), (A, "yes"))
    assert made.rejected == turns_of((A, "no"))


@pytest.mark.parametrize(
    "answers",
    [
        [{"answer": "ho", "rank": 1}, {"answer": "hm", "rank": 2}, {"answer": "no", "rank": 3}],
        [
            {"response": "hm", "overall_score": 5},
            {"response": "ho", "overall_score": 9},
            {"response": "no", "overall_score": 1},
        ],
    ],
)
def test_ranked_answers(answers):
    name, made = made_of({"prompt": "hi", "completions": answers})
    assert (name, made.turns, made.rejected) == ("ranked", turns_of((U, "hi"), (A, "ho")), turns_of((A, "no")))
    assert len(made.extra) == 1


def test_tool_blocks_of_messages():
    values = {
        "messages": [
            {"role": "user", "content": "weather?"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Bern"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sunny"}]},
                    {"type": "text", "text": "and?"},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "Sunny."}]},
        ]
    }
    _, made = made_of(values)
    assert made.turns == (
        Turn(U, "weather?"),
        Turn(A, "I look.", reasoning="hm", tool_calls=(ToolCall("weather", '{"city": "Bern"}', "t1"),)),
        Turn(T, "sunny", tool_call_id="t1"),
        Turn(U, "and?"),
        Turn(A, "Sunny."),
    )


def test_calls_of_gemini():
    values = {
        "contents": [
            {"role": "user", "parts": [{"text": "weather?"}]},
            {"role": "model", "parts": [{"functionCall": {"name": "weather", "args": {"city": "Bern"}}}]},
            {"role": "user", "parts": [{"functionResponse": {"name": "weather", "response": {"sky": "blue"}}}]},
            {"role": "model", "parts": [{"text": "Blue."}]},
        ]
    }
    _, made = made_of(values)
    assert made.turns == (
        Turn(U, "weather?"),
        Turn(A, "", tool_calls=(ToolCall("weather", '{"city": "Bern"}'),)),
        Turn(T, '{"sky": "blue"}', name="weather"),
        Turn(A, "Blue."),
    )


def test_a_mapping_reaches_into_columns_turns_and_roles():
    columns = {"question": "translation.en", "answer": "translation.de"}
    name, made = made_of({"translation": {"en": "mill", "de": "Mühle"}}, columns)
    assert (name, made.turns) == ("question-answer", turns_of((U, "mill"), (A, "Mühle")))
    columns = {"turn.role": "who", "turn.content": "words", "role.doctor": "assistant", "role.patient": "user"}
    values = {"messages": [{"who": "patient", "words": "hi"}, {"who": "doctor", "words": "ho"}]}
    name, made = made_of(values, columns)
    assert (name, made.turns) == ("messages", turns_of((U, "hi"), (A, "ho")))
    check_columns(find_format("messages"), columns, Row("r", 1, values))


REFUSED = {
    "a translation pair": ({"translation": {"en": "a", "de": "b"}}, "question=translation.en"),
    "an image part": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "field 'messages[0].content[0]': This row holds image_url, and this studio trains text.",
    ),
    "an audio part": (
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
        "this studio trains text",
    ),
    "an inline file": (
        {"contents": [{"role": "user", "parts": [{"inlineData": {"mimeType": "image/png"}}]}]},
        "this studio trains text",
    ),
    "an image column": (
        {
            "image": "a.jpg",
            "conversations": [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a"}],
        },
        "field 'image': This row holds image data, and this studio trains text.",
    ),
    "a question without an answer": (
        {"question": "a", "context": "b", "answers": {"text": []}},
        "This row has no answer",
    ),
    "a choice that is none": (
        {"question": "a", "choices": ["b", "c"], "answer": 5},
        "The answer is none of the choices",
    ),
    "answers that rank alike": (
        {"prompt": "a", "completions": [{"text": "b", "rank": 1}, {"text": "c", "rank": 1}]},
        "All answers rank alike",
    ),
}


@pytest.mark.parametrize(("values", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_a_shape_is_refused_rightly(values, sentence):
    with pytest.raises(StudioError) as caught:
        made_of(values)
    assert sentence in str(caught.value) and str(caught.value).startswith("rows.jsonl:3")
