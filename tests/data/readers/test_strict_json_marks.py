"""Brackets are counted outside of strings alone."""

from __future__ import annotations

import pytest

from qlora_studio.data.readers.rows import MAX_DEPTH
from qlora_studio.data.readers.strict_json import NotStrict, check_depth, find_balanced_end


@pytest.mark.parametrize(
    ("text", "deep"),
    [
        ("[" * MAX_DEPTH + "]" * MAX_DEPTH, False),
        ("[" * MAX_DEPTH + "]" * MAX_DEPTH + " []", False),
        ("[]" + "[" * MAX_DEPTH, False),
        ("[]" + "{" * (MAX_DEPTH + 1), True),
        ("[" * (MAX_DEPTH + 1), True),
        ("[{" * 32 + "[", True),
        ("[] " * 200, False),
        ('["' + "[" * 200 + '"]', False),
        ('["\\"' + "[" * 200 + '"]', False),
        ('["]]]", ' + "[" * MAX_DEPTH, True),
    ],
)
def test_a_row_is_too_deep_by_its_own_brackets(text, deep):
    if deep:
        with pytest.raises(NotStrict, match=f"nested deeper than {MAX_DEPTH} levels"):
            check_depth(text)
    else:
        check_depth(text)


@pytest.mark.parametrize(
    ("text", "start", "stop", "end"),
    [
        ("{}, x", 0, 5, 2),
        ('{"a": [1, {"b": "}]"}]} x', 0, 25, 23),
        ('{"a\\"}": 1}', 0, 11, 11),
        ("{}, {}", 4, 6, 6),
        ("{[}", 0, 3, -1),
        ("{}", 0, 1, -1),
        ('"a"]', 0, 4, 3),
        ("", 0, 0, -1),
    ],
)
def test_where_the_brackets_that_open_have_closed(text, start, stop, end):
    assert find_balanced_end(text, start, stop) == end
