"""Rows of texts, segments and tokens: what becomes of every column, and which row is refused with what."""

from __future__ import annotations

import pytest

from qlora_studio.core.conversation import Conversation, Pretokenised, Segment
from qlora_studio.core.errors import Problem
from tests.data.formats.made import AT, A, S, U, read, reason, refused, turns_of

ROWS = {
    "instruction alone": ("alpaca", {"instruction": "do", "output": "ok", "input": None, "history": None}, ((U, "do"), (A, "ok")), {}),
    "input alone": ("alpaca", {"instruction": "", "input": "x", "output": "ok"}, ((U, "x"), (A, "ok")), {}),
    "both": ("alpaca", {"instruction": "do", "input": "x", "response": 2.5}, ((U, "do\n\nx"), (A, "2.5")), {}),
    "system and history": (
        "alpaca",
        {"instruction": "do", "output": "ok", "system": "s", "history": [["a", "b"], ["c", "d"]], "id": 1},
        ((S, "s"), (U, "a"), (A, "b"), (U, "c"), (A, "d"), (U, "do"), (A, "ok")),
        {"id": 1},
    ),
    "context before a question": (
        "question-answer", {"passage": "p", "question": "q", "answer": "a"}, ((U, "p\n\nq"), (A, "a")), {},
    ),
    "an article before a question": (
        "question-answer", {"article": "p", "question": "q", "answer": "a"}, ((U, "p\n\nq"), (A, "a")), {},
    ),
    "an article to sum up": ("question-answer", {"article": "p", "summary": "a"}, ((U, "p"), (A, "a")), {}),
    "a query beside an article": (
        "question-answer", {"article": "p", "query": "q", "response": "a"}, ((U, "q"), (A, "a")), {"article": "p"},
    ),
    "several answers": (
        "question-answer", {"question": "q", "answers": ["a", "b", "c"]}, ((U, "q"), (A, "a")),
        {"answers[1]": "b", "answers[2]": "c"},
    ),
    "several answers with places": (
        "question-answer", {"question": "q", "answers": {"text": ["a", "b"], "at": [4]}}, ((U, "q"), (A, "a")),
        {"answers.at": [4], "answers[1]": "b"},
    ),
    "prompt and completion": (
        "prompt-completion", {"prompt": "p", "completion": "c", "system": "s"}, ((S, "s"), (U, "p"), (A, "c")), {},
    ),
    "lists of turns": (
        "prompt-completion",
        {"prompt": [{"role": "user", "content": "p"}], "completion": {"role": "assistant", "content": "c"}},
        ((U, "p"), (A, "c")),
        {},
    ),
    "turns as JSON text": (
        "prompt-completion",
        {"prompt": ' [{"role": "user", "content": "p"}]', "completion": '[{"role": "assistant", "content": "c"}]'},
        ((U, "p"), (A, "c")),
        {},
    ),
    "text that only looks like a list": ("prompt-completion", {"prompt": '[{"a": 1}]', "completion": 'the "role" of'},
                                         ((U, '[{"a": 1}]'), (A, 'the "role" of')), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_texts_becomes_turns_and_the_rest_is_kept(name):
    format, values, turns, extra = ROWS[name]
    assert read(values) == Conversation(turns=turns_of(*turns), source=AT, extra=extra)
    assert reason(values, format), "it is recognised as what it is read as"


FIX = "Fix or remove this row."
REFUSED = {
    "no answer": ("alpaca", {"instruction": "do", "output": None}, ("This field holds null where text is needed.", FIX, "output")),
    "the answer that is there": ("alpaca", {"instruction": "do", "code": None}, ("This field holds null where text is needed.", FIX, "code")),
    "no column for it": ("alpaca", {"instruction": "do"}, ("This row has no such field.", "It has: instruction.", "output")),
    "a pair of three": ("alpaca", {"instruction": "do", "output": "ok", "history": [["a", "b"], ["a", "b", "c"]]}, ("This pair is not [question, answer].", FIX, "history[1]")),
    "a pair of numbers": ("alpaca", {"instruction": "do", "output": "ok", "history": [[1, 2]]}, ("This pair is not [question, answer].", FIX, "history[0]")),
    "a text for a pair": ("alpaca", {"instruction": "do", "output": "ok", "history": ["ab"]}, ("This pair is not [question, answer].", FIX, "history[0]")),
    "no completion": ("prompt-completion", {"prompt": "p", "generation": None}, ("This field holds null where text is needed.", FIX, "generation")),
    "only a question": ("question-answer", {"query": "q"}, ("This row has no such field.", "It has: query.", "response")),
    "only an answer": ("question-answer", {"summary": "a"}, ("This row has no such field.", "It has: summary.", "article")),
    "neither": ("question-answer", {"x": "a"}, ("This row has no such field.", "It has: x.", "question")),
    "nothing at all": ("question-answer", {}, ("This row has no such field.", "It has: none.", "question")),
    "no text of several": ("question-answer", {"question": "q", "answers": []}, ("This row has no answer.", "Leave it out, or write one.", "answers")),
    "numbers of several": ("question-answer", {"question": "q", "answers": [1]}, ("This row has no answer.", "Leave it out, or write one.", "answers")),
    "a truth": ("question-answer", {"question": "q", "answer": True}, ("This field holds true or false where text is needed.", FIX, "answer")),
    "no segment": ("segments", {"segments": []}, ("This row has no segments.", "Remove this row.", "segments")),
    "a text for a segment": ("segments", {"segments": ["x"]}, ("This segment has no text.", "Fix this row.", "segments[0].text")),
    "a segment without text": ("segments", {"segments": [{"text": "a", "label": True}, {"label": True}]}, ("This segment has no text.", "Fix this row.", "segments[1].text")),
    "a label of 1": ("segments", {"segments": [{"text": "a", "label": 1}]}, ("The label is the number 1, not true or false.", "Fix this row.", "segments[0].label")),
    "no token": ("tokens", {"input_ids": []}, ("This row has no tokens.", "Remove this row.", "input_ids")),
    "a negative token": ("tokens", {"input_ids": [0, -1]}, ("Item 1 is -1, not a token.", "Fix this row.", "input_ids")),
    "a truth for a token": ("tokens", {"input_ids": [True]}, ("Item 0 is True, not a token.", "Fix this row.", "input_ids")),
    "a text for a token": ("tokens", {"input_ids": ["1"]}, ("Item 0 is '1', not a token.", "Fix this row.", "input_ids")),
    "too few labels": ("tokens", {"input_ids": [5, 6], "labels": [5]}, ("There are 1 labels for 2 tokens.", "Fix this row.", "labels")),
    "too many labels": ("tokens", {"input_ids": [5], "labels": [5, 6]}, ("There are 2 labels for 1 tokens.", "Fix this row.", "labels")),
    "another label": ("tokens", {"input_ids": [5, 6], "labels": [-100, 7]}, ("Label 1 is 7 where the token is 6.", "A label is the token itself or -100.", "labels")),
    "a label of -99": ("tokens", {"input_ids": [5], "labels": [-99]}, ("Label 0 is -99 where the token is 5.", "A label is the token itself or -100.", "labels")),
    "a label below -100": ("tokens", {"input_ids": [5], "labels": [-101]}, ("Item 0 is -101, not a token.", "Fix this row.", "labels")),
    "padding": ("tokens", {"input_ids": [5, 6], "attention_mask": [1, 0]}, ("The attention mask hides tokens.", "Remove the padding.", "attention_mask")),
    "a mask of -1": ("tokens", {"input_ids": [5], "attention_mask": [-1]}, ("Item 0 is -1, not a token.", "Fix this row.", "attention_mask")),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_row_that_lacks_something_is_refused_with_its_field(name):
    format, values, (message, hint, field) = REFUSED[name]
    assert refused(values, format) == Problem(message, hint, str(AT), field)


@pytest.mark.parametrize(
    ("values", "tokens"),
    [
        ({"input_ids": [5, 0]}, Pretokenised((5, 0), (5, 0))),
        ({"input_ids": [5, 6], "labels": None, "attention_mask": [1, 1]}, Pretokenised((5, 6), (5, 6))),
        ({"input_ids": [5, 6, 0], "labels": [-100, 6, 0]}, Pretokenised((5, 6, 0), (-100, 6, 0))),
    ],
)
def test_without_labels_every_token_is_trained(values, tokens):
    assert read(values, "tokens").tokens == tokens


def test_segments_keep_what_else_they_hold():
    values = {"segments": [{"text": "a", "label": False}, {"text": "b", "label": True, "id": 7}]}
    assert read(values) == Conversation(
        segments=(Segment("a", False), Segment("b", True)), source=AT, extra={"segments[1].id": 7}
    )


@pytest.mark.parametrize(
    ("format", "values", "fits"),
    [
        ("segments", {"segments": [{"label": 1}]}, True),
        ("segments", {"segments": [{"text": "a"}]}, False),
        ("segments", {"segments": ["label"]}, False),
        ("segments", {"segments": []}, False),
        ("segments", {"segments": "label"}, False),
        ("tokens", {"input_ids": []}, True),
        ("tokens", {"input_ids": "[1]"}, False),
        ("text", {"text": ""}, True),
        ("text", {"text": 1}, False),
        ("alpaca", {"instruction": "a", "target": "b"}, True),
        ("alpaca", {"instruction": "a"}, False),
        ("alpaca", {"output": "a"}, False),
        ("prompt-completion", {"prompt": "a", "generation": "b"}, True),
        ("prompt-completion", {"prompt": "a"}, False),
        ("prompt-completion", {"output": "a"}, False),
        ("question-answer", {"problem": "a", "answer": "b"}, True),
        ("question-answer", {"problem": "a", "response": "b"}, False),
    ],
)
def test_what_makes_a_row_one_of_these(format, values, fits):
    assert bool(reason(values, format)) == fits


def test_raw_text_is_the_whole_row():
    assert read({"text": "Once.", "url": "x"}) == Conversation(text="Once.", source=AT, extra={"url": "x"})
