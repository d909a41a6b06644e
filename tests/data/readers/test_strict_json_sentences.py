"""JSON that is read strictly: the value, or one sentence with its line and column."""

from __future__ import annotations

import json

import pytest

from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.data.readers.strict_json import broken, parse_json


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (' \n{"a": [1, 2.5, null, true]}\t\r\n', {"a": [1, 2.5, None, True]}),
        ('"\\ud83d\\ude00 \\uD83D\\uDE00"', "\U0001f600 \U0001f600"),
        ('"\\\\ud83d"', "\\ud83d"),
        ('"\\\\\\ud83d\\ude00"', "\\\U0001f600"),
        ("9" * 4300, int("9" * 4300)),
    ],
)
def test_what_is_whole_is_read(text, value):
    assert parse_json(text) == value


TOO_LONG = "A number here is too long to read: Exceeds the limit (4300 digits) for integer string conversion: value has 4301 digits; use sys.set_int_max_str_digits() to increase the limit."
PYTHON = ("This is a Python dictionary, not JSON: keys stand in single quotes.", "Write it with json.dumps.")
FIX = "Fix this row."


@pytest.mark.parametrize(
    ("text", "message", "hint", "line"),
    [
        ('{"a": 1} x', "There is more after the end of the row, at column 10.", FIX, 7),
        (' {}{"a": 1}', "There is more after the end of the row, at column 4.", FIX, 7),
        ('{"a": NaN}', "NaN is not JSON.", FIX, 7),
        ('{"a": -Infinity}', "-Infinity is not JSON.", FIX, 7),
        ('{"b": 1, "c": 2, "a": 3, "c": 4, "b": 5}', "The key 'b' stands twice in one object.", FIX, 7),
        ('[{"a": 1}, {"a": {"c": 1, "c": 2}}]', "The key 'c' stands twice in one object.", FIX, 7),
        ('"a \\ud83d b"', "\\ud83d is half of a character.", FIX, 7),
        ('"a \\uDe00"', "\\uDe00 is half of a character.", FIX, 7),
        ('"\\ud83d\\ud83d"', "\\ud83d is half of a character.", FIX, 7),
        ("[" * 65 + "]" * 65, "This row is nested deeper than 64 levels.", FIX, 7),
        (" {\n 'a': 1}", *PYTHON, 7),
        (" " * 98 + "{'", *PYTHON, 7),
        (" " * 99 + "{'", "The JSON is broken at column 101: expecting property name enclosed in double quotes.", FIX, 7),
        ("", "The JSON is broken at column 1: expecting value.", FIX, 7),
        ('{"a": 1', "The JSON is broken at column 8: expecting ',' delimiter.", FIX, 7),
        ('{"a":\n "b\nc"}', "The JSON is broken at column 4: invalid control character at.", FIX, 8),
        ('{"a":\n\n  x}', "The JSON is broken at column 3: expecting value.", FIX, 9),
        ("9" * 4301, TOO_LONG, "Write it as text.", 7),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_line(text, message, hint, line):
    with pytest.raises(StudioError) as caught:
        parse_json(text, "a:b.jsonl:7")
    assert caught.value.problems == (Problem(message, hint, f"a:b.jsonl:{line}"),)
    with pytest.raises(StudioError) as caught:
        parse_json(text, "a:b.jsonl:7", "turns")
    assert caught.value.problems == (Problem(message, hint, "a:b.jsonl:7", "turns"),), "of a field the row is named"
    with pytest.raises(StudioError) as caught:
        parse_json(text)
    assert caught.value.problems == (Problem(message, hint),)


def test_an_error_is_counted_from_the_row_in_which_it_is():
    text = '[\n{"a": 1},\n {"b":\n x}]'
    with pytest.raises(ValueError) as caught:
        json.loads(text)
    begins = text.index('{"b"')
    assert broken(caught.value, text, "f:3", begins).problems == (
        Problem("The JSON is broken at column 2: expecting value.", FIX, "f:4"),
    )
    assert broken(RecursionError(), text, "f:3", begins).problems == (
        Problem("This row is nested deeper than 64 levels.", "Flatten it.", "f:3"),
    )
    python = "[\n{},\n{'b': 1}]"
    with pytest.raises(ValueError) as caught:
        json.loads(python)
    assert broken(caught.value, python, "f:3", python.index("{'")).message == f"f:3: {PYTHON[0]}"
    assert broken(caught.value, python, "f:3", 0).message != f"f:3: {PYTHON[0]}"
