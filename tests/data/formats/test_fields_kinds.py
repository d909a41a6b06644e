"""What a row's fields hand out: text, numbers, lists, paths, and what nobody took."""

from __future__ import annotations

import pytest

from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.data.formats.fields import Fields, kind_of
from qlora_studio.data.readers.rows import Row

VALUES = {
    "a": "x",
    "n": None,
    "e": "",
    "l": ["y"],
    "j": ' ["z"]',
    "i": 3,
    "f": 2.5,
    "t": True,
    "in": {"one": {"two": "w"}},
}


def fields(**columns) -> Fields:
    return Fields(Row("r.jsonl", 4, dict(VALUES)), columns)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "null"), (True, "true or false"), ("x", "text"), ([], "a list"), ({}, "an object"), (3, "the number 3"),
        (2.5, "the number 2.5"), (b"x", "bytes"),
    ],
)  # fmt: skip
def test_a_kind_in_words(value, words):
    assert kind_of(value) == words


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (lambda f: f.text("a"), "x"),
        (lambda f: f.text("e"), ""),
        (lambda f: f.answer("a"), "x"),
        (lambda f: f.answer("i"), "3"),
        (lambda f: f.answer("f"), "2.5"),
        (lambda f: f.optional_text("a"), "x"),
        (lambda f: f.optional_text("e"), ""),
        (lambda f: f.optional_text("n"), ""),
        (lambda f: f.optional_text("none"), ""),
        (lambda f: f.items("l"), ["y"]),
        (lambda f: f.items("j"), ["z"]),
        (lambda f: f.take("i"), 3),
        (lambda f: f.take("none"), None),
    ],
)
def test_what_is_read_is_taken_and_the_rest_is_left(read, value):
    found = fields()
    assert read(found) == value and len(found.taken) == 1
    assert found.rest() == {name: kept for name, kept in VALUES.items() if name not in found.taken}


def test_what_was_missing_is_taken_too():
    found = fields()
    assert (found.optional_text("n"), found.has("n"), found.first(("n", "e", "a"))) == ("", False, "e")
    assert "n" not in found.rest()


NEEDED = "Fix or remove this row."


@pytest.mark.parametrize(
    ("read", "problem"),
    [
        (lambda f: f.text("n"), ("This field holds null where text is needed.", NEEDED, "n")),
        (lambda f: f.text("none"), ("This row has no such field.", f"It has: {', '.join(VALUES)}.", "none")),
        (lambda f: f.text("i"), ("This field holds the number 3 where text is needed.", NEEDED, "i")),
        (lambda f: f.answer("t"), ("This field holds true or false where text is needed.", NEEDED, "t")),
        (lambda f: f.answer("l"), ("This field holds a list where text is needed.", NEEDED, "l")),
        (lambda f: f.optional_text("i"), ("This field holds the number 3 where text is needed.", NEEDED, "i")),
        (lambda f: f.items("a"), ("This field holds text where a list is needed.", NEEDED, "a")),
        (lambda f: f.items("none"), ("This field holds null where a list is needed.", NEEDED, "none")),
    ],
)
def test_another_kind_is_refused_with_row_and_column(read, problem):
    with pytest.raises(StudioError) as caught:
        read(fields())
    message, hint, field = problem
    assert caught.value.problems == (Problem(message, hint, "r.jsonl:4", field),)


def test_a_row_without_fields_says_so():
    with pytest.raises(StudioError, match=r"It has: none\."):
        Fields(Row("r", 1, {}), {}).text("a")


def test_what_looks_like_a_list_is_read_as_strictly_as_the_file():
    with pytest.raises(StudioError) as caught:
        Fields(Row("r", 1, {"a": "[1"}), {}).items("a")
    (problem,) = caught.value.problems
    said = "This field looks like a JSON list and is none: the JSON is broken at column 3: expecting ',' delimiter."
    assert problem == Problem(said, "Fix the JSON.", "r:1", "a")


def test_a_path_reaches_inside_and_a_column_of_that_name_comes_first():
    assert fields(q="in.one.two").text("q") == "w"
    assert fields(q="in.one.none").has("q") is False and fields(q="a.one").has("q") is False
    assert fields(q="in.one.none", p="a").values == VALUES
    both = Fields(Row("r", 1, {"in.one": "outer", "in": {"one": "inner"}}), {"q": "in.one"})
    assert both.text("q") == "outer"
