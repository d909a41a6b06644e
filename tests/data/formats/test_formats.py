"""The thirty kinds of rows that people bring: each is recognised, converted whole, and loses nothing unlisted."""

import json

import pytest

from qlora_studio.core.conversation import Conversation, Pretokenised, Segment, ToolCall, Turn
from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.data.formats.registry import FORMATS, Converted, convert, convert_all, detect, find_format
from qlora_studio.data.readers.rows import Row
from qlora_studio.data.sets.canonical import from_line, to_line

WEATHER = {"name": "weather", "description": "Tells it.", "parameters": {"type": "object", "properties": {}}}
CALL = {"name": "weather", "arguments": {"city": "Bern"}}


def conversations(rows, entry, columns):
    return [one.conversation if isinstance(one, Converted) else one for one in convert_all(rows, entry, columns)]


def turns_of(*turns):
    return tuple(Turn(role, content) for role, content in turns)


U, A, S, T = "user", "assistant", "system", "tool"
ASKED = turns_of((U, "hi"), (A, "ho"))

KINDS = {
    "01 alpaca": ({"instruction": "hi", "input": "", "output": "ho"}, "alpaca", {"turns": ASKED}),
    "02 alpaca with input": (
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        "alpaca",
        {"turns": turns_of((U, "Add.\n\n1 and 2"), (A, "3"))},
    ),
    "02 alpaca without input": ({"instruction": "hi", "output": "ho"}, "alpaca", {"turns": ASKED}),
    "03 alpaca with system and history": (
        {"system": "Be kind.", "history": [["a", "b"]], "instruction": "hi", "input": "", "output": "ho"},
        "alpaca",
        {"turns": turns_of((S, "Be kind."), (U, "a"), (A, "b"), (U, "hi"), (A, "ho"))},
    ),
    "04 sharegpt": (
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
        "sharegpt",
        {"turns": ASKED},
    ),
    "05 sharegpt with system first": (
        {
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": "human", "value": "hi"},
                {"from": "gpt", "value": "ho"},
            ]
        },
        "sharegpt",
        {"turns": turns_of((S, "s"), (U, "hi"), (A, "ho"))},
    ),
    "06 sharegpt starting with gpt": (
        {
            "conversations": [
                {"from": "gpt", "value": "yo"},
                {"from": "human", "value": "hi"},
                {"from": "gpt", "value": "ho"},
            ]
        },
        "sharegpt",
        {"turns": turns_of((A, "yo"), (U, "hi"), (A, "ho"))},
    ),
    "07 two user turns in a row": (
        {
            "conversations": [
                {"from": "Human", "value": "hi"},
                {"from": "human", "value": "there"},
                {"from": "GPT", "value": "ho"},
            ]
        },
        "sharegpt",
        {"turns": turns_of((U, "hi"), (U, "there"), (A, "ho"))},
    ),
    "08 ends on a user turn": (
        {"messages": [{"role": U, "content": "hi"}, {"role": A, "content": "ho"}, {"role": U, "content": "bye"}]},
        "messages",
        {"turns": turns_of((U, "hi"), (A, "ho"), (U, "bye"))},
    ),
    "09 function_call and observation": (
        {
            "conversations": [
                {"from": "human", "value": "hi"},
                {"from": "function_call", "value": json.dumps(CALL)},
                {"from": "observation", "value": '{"sky": "blue"}'},
                {"from": "gpt", "value": "ho"},
            ],
            "tools": json.dumps([WEATHER]),
        },
        "sharegpt",
        {
            "turns": (
                Turn(U, "hi"),
                Turn(A, "", tool_calls=(ToolCall("weather", '{"city": "Bern"}'),)),
                Turn(T, '{"sky": "blue"}'),
                Turn(A, "ho"),
            ),
            "tools": ({"type": "function", "function": WEATHER},),
        },
    ),
    "10 messages": (
        {"messages": [{"role": U, "content": "hi"}, {"role": A, "content": "ho"}]},
        "messages",
        {"turns": ASKED},
    ),
    "11 messages as JSON text": (
        {"messages": json.dumps([{"role": U, "content": "hi"}, {"role": A, "content": "ho"}])},
        "messages",
        {"turns": ASKED},
    ),
    "12 tool_calls, role tool and tools": (
        {
            "messages": [
                {"role": U, "content": "hi"},
                {"role": A, "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": CALL}]},
                {"role": T, "content": "blue", "tool_call_id": "c1", "name": "weather"},
                {"role": A, "content": "ho"},
            ],
            "tools": [{"type": "function", "function": WEATHER}],
        },
        "messages",
        {
            "turns": (
                Turn(U, "hi"),
                Turn(A, "", tool_calls=(ToolCall("weather", '{"city": "Bern"}', "c1"),)),
                Turn(T, "blue", name="weather", tool_call_id="c1"),
                Turn(A, "ho"),
            ),
            "tools": ({"type": "function", "function": WEATHER},),
        },
    ),
    "13 content in parts": (
        {
            "messages": [
                {"role": U, "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]},
                {"role": A, "content": "ho"},
            ]
        },
        "messages",
        {"turns": ASKED},
    ),
    "15 reasoning_content": (
        {"messages": [{"role": U, "content": "hi"}, {"role": A, "content": "ho", "reasoning_content": "hm"}]},
        "messages",
        {"turns": (Turn(U, "hi"), Turn(A, "ho", reasoning="hm"))},
    ),
    "15 think tags": (
        {"messages": [{"role": U, "content": "hi"}, {"role": A, "content": "<think>\nhm\n</think>\n\nho"}]},
        "messages",
        {"turns": (Turn(U, "hi"), Turn(A, "ho", reasoning="hm"))},
    ),
    "16 prompt and completion": ({"prompt": "hi", "completion": "ho"}, "prompt-completion", {"turns": ASKED}),
    "17 prompt and completion as messages": (
        {"prompt": [{"role": U, "content": "hi"}], "completion": [{"role": A, "content": "ho"}]},
        "prompt-completion",
        {"turns": ASKED},
    ),
    "18 prompt and response": ({"prompt": "hi", "response": "ho"}, "prompt-completion", {"turns": ASKED}),
    "18 question and answer": ({"question": "hi", "answer": "ho"}, "question-answer", {"turns": ASKED}),
    "18 question, context, answer": (
        {"question": "hi", "context": "Once.", "answer": "ho"},
        "question-answer",
        {"turns": turns_of((U, "Once.\n\nhi"), (A, "ho"))},
    ),
    "18 source and target": ({"source": "hi", "target": "ho"}, "question-answer", {"turns": ASKED}),
    "18 input and output": ({"input": "hi", "output": "ho"}, "question-answer", {"turns": ASKED}),
    "18 dialog": ({"dialog": ["hi", "ho", "hey"]}, "dialogue", {"turns": turns_of((U, "hi"), (A, "ho"), (U, "hey"))}),
    "18 conversation": (
        {"conversation": [{"role": "human", "content": "hi"}, {"role": "ai", "content": "ho"}]},
        "messages",
        {"turns": ASKED},
    ),
    "19 segments": (
        {"segments": [{"label": False, "text": "hi"}, {"label": True, "text": "ho"}]},
        "segments",
        {"segments": (Segment("hi", False), Segment("ho", True))},
    ),
    "20 text": ({"text": "Once upon a time."}, "text", {"text": "Once upon a time."}),
    "21 preference": (
        {"prompt": "hi", "chosen": "ho", "rejected": "no"},
        "preference",
        {"turns": ASKED, "rejected": turns_of((A, "no"))},
    ),
    "22 chosen and rejected lists with prompt": (
        {
            "prompt": "hi",
            "chosen": [{"role": U, "content": "hi"}, {"role": A, "content": "ho"}],
            "rejected": [{"role": U, "content": "hi"}, {"role": A, "content": "no"}],
        },
        "preference",
        {"turns": ASKED, "rejected": turns_of((A, "no"))},
    ),
    "22 chosen and rejected lists, implicit prompt": (
        {
            "chosen": [{"role": U, "content": "hi"}, {"role": A, "content": "ho"}],
            "rejected": [{"role": U, "content": "hi"}, {"role": A, "content": "no"}],
        },
        "preference",
        {"turns": ASKED, "rejected": turns_of((A, "no"))},
    ),
    "23 ranked sharegpt": (
        {
            "conversations": [{"from": "human", "value": "hi"}],
            "chosen": {"from": "gpt", "value": "ho"},
            "rejected": {"from": "gpt", "value": "no"},
        },
        "preference",
        {"turns": ASKED, "rejected": turns_of((A, "no"))},
    ),
    "24 argilla": (
        {"instruction": "hi", "chosen_response": "ho", "rejected_response": "no"},
        "preference",
        {"turns": ASKED, "rejected": turns_of((A, "no"))},
    ),
    "25 kto": ({"prompt": "hi", "completion": "ho", "label": True}, "kto", {"turns": ASKED, "label": True}),
    "25 kto_tag": (
        {"messages": [{"role": U, "content": "hi"}, {"role": A, "content": "ho"}], "kto_tag": False},
        "kto",
        {"turns": ASKED, "label": False},
    ),
    "27 oasst": ({"INSTRUCTION": "hi", "RESPONSE": "ho"}, "question-answer", {"turns": ASKED}),
    "27 metharme": ({"prompt": "hi", "generation": "ho"}, "prompt-completion", {"turns": ASKED}),
    "27 camel": ({"message_1": "hi", "message_2": "ho"}, "question-answer", {"turns": ASKED}),
    "27 open orca": (
        {"id": "n.1", "system_prompt": "s", "question": "hi", "response": "ho"},
        "question-answer",
        {"turns": turns_of((S, "s"), (U, "hi"), (A, "ho")), "extra": {"id": "n.1"}},
    ),
    "29 train and weight": (
        {
            "messages": [
                {"role": U, "content": "hi", "train": False},
                {"role": A, "content": "no", "weight": 0},
                {"role": A, "content": "ho", "weight": 1},
            ]
        },
        "messages",
        {"turns": (Turn(U, "hi", train=False), Turn(A, "no", train=False), Turn(A, "ho", train=True))},
    ),
    "30 tokens": (
        {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "labels": [-100, 6, 7]},
        "tokens",
        {"tokens": Pretokenised((5, 6, 7), (-100, 6, 7))},
    ),
    "extra fields are kept": (
        {"instruction": "hi", "output": "ho", "topic": {"name": "greeting"}, "score": 0.5},
        "alpaca",
        {"turns": ASKED, "extra": {"topic": {"name": "greeting"}, "score": 0.5}},
    ),
    "extra fields of turns are kept": (
        {"messages": [{"role": U, "content": "hi", "at": "noon"}, {"role": A, "content": "ho"}]},
        "messages",
        {"turns": ASKED, "extra": {"messages[0].at": "noon"}},
    ),
}


@pytest.mark.parametrize(("values", "format", "expected"), KINDS.values(), ids=KINDS.keys())
def test_a_kind_is_recognised_and_converted_whole(values, format, expected):
    row = Row("rows.jsonl", 3, values)
    assert detect([row]).format == format
    made = convert(row, find_format(format), {})
    assert made == Conversation(**{"source": made.source, **expected})
    assert str(made.source) == "rows.jsonl:3"


def leaves(value):
    """Every text and number of a row; JSON inside text is looked into, as the importer does."""
    if isinstance(value, str):
        try:
            inner = json.loads(value)
        except ValueError:
            inner = None
        if isinstance(inner, dict | list):
            yield from leaves(inner)
        else:
            yield from value.replace("<think>\n", "").split("\n</think>\n\n")
    elif isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield str(value)


@pytest.mark.parametrize(("values", "format", "expected"), KINDS.values(), ids=KINDS.keys())
def test_nothing_of_a_row_disappears_and_the_canonical_line_gives_it_back(values, format, expected):
    made = convert(Row("rows.jsonl", 3, values), find_format(format), {})
    line = to_line(made)
    assert from_line(line) == made
    kept = line.replace('\\"', '"').replace("\\n", "\n")
    names = {
        "human",
        "gpt",
        "Human",
        "GPT",
        "ai",
        "function_call",
        "observation",
        "1",
        "0",
        "text",
        "function",
    }  # roles and masks, held as such
    missing = [leaf for leaf in leaves(values) if leaf not in kept and leaf not in names]
    assert missing == []


def test_threads_join_rows_by_parent():
    rows = [
        Row("t.csv", 2, {"id": "1", "parent_id": "", "prompt": "hi", "output": "ho"}),
        Row("t.csv", 3, {"id": "2", "parent_id": "1", "prompt": "more", "output": "yes"}),
        Row("t.csv", 4, {"id": "3", "parent_id": "1", "prompt": "less", "output": "no"}),
    ]
    assert detect(rows).format == "thread"
    made = list(conversations(rows, find_format("thread"), {}))
    assert [one.turns for one in made] == [
        turns_of((U, "hi"), (A, "ho"), (U, "more"), (A, "yes")),
        turns_of((U, "hi"), (A, "ho"), (U, "less"), (A, "no")),
    ]


def test_threads_of_single_messages_with_roles():
    rows = [
        Row("t.jsonl", 1, {"message_id": "a", "parent_id": None, "role": "prompter", "text": "hi", "lang": "en"}),
        Row("t.jsonl", 2, {"message_id": "b", "parent_id": "a", "role": "assistant", "text": "ho", "lang": "en"}),
    ]
    (made,) = conversations(rows, find_format(detect(rows).format), {})
    assert made.turns == ASKED
    assert made.extra == {"id.a": "a", "id.b": "b", "lang": "en"}


def test_threads_say_what_is_wrong():
    rows = [
        Row("t.jsonl", 1, {"id": "a", "parent_id": "x", "prompt": "hi", "output": "ho"}),
        Row("t.jsonl", 2, {"id": "b", "parent_id": "c", "prompt": "hi", "output": "ho"}),
        Row("t.jsonl", 3, {"id": "c", "parent_id": "b", "prompt": "hi", "output": "ho"}),
        Row("t.jsonl", 4, {"id": "c", "parent_id": None, "prompt": "hi", "output": "ho"}),
    ]
    problems = list(conversations(rows, find_format("thread"), {}))
    assert [(problem.where, problem.message) for problem in problems if isinstance(problem, Problem)] == [
        ("t.jsonl:4", "The id 'c' stands at t.jsonl:3 as well."),
        ("t.jsonl:1", "The parent 'x' is not in this file."),
        ("t.jsonl:2", "The parents go round in a circle."),
        ("t.jsonl:3", "The parents go round in a circle."),
    ]


def test_a_column_map_names_the_parts():
    row = Row("q.csv", 2, {"frage": "hi", "antwort": "ho"})
    columns = {"instruction": "frage", "output": "antwort"}
    assert detect([row], columns).format == "alpaca"
    assert convert(row, find_format("alpaca"), columns).turns == ASKED


def test_detection_says_how_sure_it_is():
    good = Row("r.jsonl", 1, {"prompt": "hi", "completion": "ho"})
    guess = detect([good, good, good, Row("r.jsonl", 4, {"text": "hm"})])
    assert (guess.format, guess.confidence) == ("prompt-completion", 0.75)
    assert guess.reason == "the rows have 'prompt' and 'completion'"


def test_a_row_of_another_format_is_named():
    row = Row("r.jsonl", 7, {"prompt": "hi", "completion": "ho"})
    with pytest.raises(StudioError) as caught:
        convert(row, find_format("alpaca"), {})
    assert caught.value.message == (
        "r.jsonl:7: field 'instruction': This row has another format than the file (alpaca): "
        "the rows have 'prompt' and 'completion'."
    )


def test_every_format_has_a_preset():
    from qlora_studio.home import bundled

    presets = {path.stem for path in (bundled("presets") / "format").glob("*.toml")}
    assert presets == set(FORMATS)
