"""A JSON document gives the same rows, problems and lines in whatever pieces its text arrives."""

from __future__ import annotations

import io
import json
import re

import pytest

from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.data.readers import json_buffer
from qlora_studio.data.readers.json_buffer import JsonBuffer
from qlora_studio.data.readers.json_file import _is_one_document, _read_document, read_json, read_jsonl
from qlora_studio.data.readers.rows import Row, Tally, Unseen
from qlora_studio.data.readers.strict_json import DECODER
from qlora_studio.data.readers.text_file import DecodedText


def buffer_of(text, size=1 << 20):
    pieces = (text[at : at + size] for at in range(0, len(text), size))
    return JsonBuffer(DecodedText(io.BytesIO(b"")), pieces, "f")


def shown(items):
    """Rows as line and values, problems as line and sentence; in what column of what was read depends on the pieces."""
    found = []
    for item in items:
        problem = item.problem if isinstance(item, Unseen) else item
        line = item.line if isinstance(item, Row) else int(problem.where.removeprefix("f:"))
        words = item.values if isinstance(item, Row) else re.sub(r"column \d+", "column _", problem.message)
        found.append((line, f"unseen: {words}" if isinstance(item, Unseen) else words))
    return found


A1, A2, A3 = {"a": 1}, {"a": 2}, {"a": 3}
COMMA, VALUE = (
    "The JSON is broken at column _: expecting ',' delimiter.",
    "The JSON is broken at column _: expecting value.",
)
NUMBER, TEXT = "This row is a number, not an object with fields.", "This row is text, not an object with fields."
TWICE = "The key 'a' stands twice in one object"
CASES = [
    ("", []),
    (" []", []),
    ('[{"a": 1}, {"a": 2}]', [(1, A1), (1, A2)]),
    ('[{"a": 1},\n\n {"a": 2} ]  ', [(1, A1), (3, A2)]),
    ('[\n {"a": 1},\n {"a": "x, "b": 2},\n {"a": 3}\n]', [(2, A1), (3, COMMA), (4, A3)]),
    ('[{"a": 1} {"a": 2}]', [(1, A1), (1, "The JSON is broken: a comma or ] is missing before '{'.")]),
    ('[ {"a": 1} x, y, {"a": 2}]', [(1, A1), (1, "The JSON is broken: a comma or ] is missing before 'x'."), (1, A2)]),
    ('[{"a": 1}, {"a": 2},\n]', [(1, A1), (1, A2), (2, "The JSON is broken: a comma stands before ].")]),
    ('[{"a": 1},\n12345, {"a": 3}]', [(1, A1), (2, NUMBER), (2, A3)]),
    ('[{"a": -1.5e3}, 1.5, {"a": 3}]', [(1, {"a": -1500.0}), (1, NUMBER), (1, A3)]),
    ("[1, 2]", [(1, NUMBER), (1, NUMBER)]),
    ('[[{"a": 1}], {"a": 2}]', [(1, "This row is a list, not an object with fields."), (1, A2)]),
    ('[{"a": 1}, {"a": }, {"a": 3}]', [(1, A1), (1, VALUE), (1, A3)]),
    ('[{"a": tru}, {"a": 3}]', [(1, VALUE), (1, A3)]),
    ('[{"a": true}, {"a": 3}]', [(1, {"a": True}), (1, A3)]),
    ('[{"a": 1}, {"a": [1, 2}, {"a": 3}]', [(1, A1), (1, COMMA), (1, A3)]),
    ('[{"a": 1}, nope, {"a": 3}]', [(1, A1), (1, VALUE), (1, A3)]),
    ('[{"a": 1}, {"a": "open}]', [(1, A1), (1, "The JSON is broken at column _: unterminated string starting at.")]),
    ('[{"b": "x, "c": 2},\n{"b": 3}]', [(1, COMMA), (2, {"b": 3})]),
    ('[{"a": {"a": 1}}, {"a": [{"a": 2]}, {"a": 3}]', [(1, {"a": A1}), (1, COMMA), (1, A3)]),
    ('[{"a": 1}, {"a": 1, "a": 2}, {"a": 3}]', [(1, A1), (1, f"{TWICE}."), (1, A3)]),
    ('[{"a": 1}, "a": 2}, {"a": 3}]', [(1, A1), (1, TEXT), (1, A3)]),
    ('[{"a": 1}, {"a": "\\ud800"}, {"a": 3}]', [(1, A1), (1, "\\ud800 is half of a character."), (1, A3)]),
    ('[{}, {"a": 1}, {"a": "x, "y"}, {"a": 2}]', [(1, {}), (1, A1), (1, COMMA), (1, A2)]),
    ('{"data": [{"a": nope}, {"a": 2}]}', [(1, VALUE), (1, A2)]),
    ('{"x": {"a": 1},\n"y": {"a": 2}, "z": {"b": 3}}', [(1, A1), (2, A2), (2, {"b": 3})]),
    ('{"x": {"a": 1}, "y": {"a": 2}, "z": 3}', [(1, A1), (1, A2), (1, "The key 'z' stands beside rows and is none itself.")]),
    ('{"x": {"a": 1}, "y": {"b": 2}}', [(1, {"x": A1, "y": {"b": 2}})]),
    ('{"x": {"a": 1}, "y": {}}', [(1, {"x": A1, "y": {}})]),
    ('{"messages": [{"role": "user"}]}', [(1, {"messages": [{"role": "user"}]})]),
    ('{"rows": [{"role": "user"}]}', [(1, {"rows": [{"role": "user"}]})]),
    ('{"only":\n {"a": 1}}', [(2, A1)]),
    ('{"tools": {"a": 1}}', [(1, {"tools": A1})]),
    ('{"data": [], "x": 1}', [(1, {"data": [], "x": 1})]),
    ('{"a": [1, 2]}', [(1, {"a": [1, 2]})]),
    ('{"a": 1}\n{"a": 2}\n\n{"a": 3}', [(1, A1), (2, A2), (4, A3)]),
    ('[{"a": 1}]\n x', [(1, A1), (2, "unseen: There is more after the end of the rows: 'x'. The 1 characters from here on were not seen.")]),
    ('[{"a": 1},\n', [(1, A1), (2, "unseen: The JSON is broken: the file ends inside the list. The 0 characters from here on were not seen.")]),
    ('[{"a": 1}, {"a": }', [(1, A1), (1, VALUE), (1, "unseen: The JSON is broken: the file ends inside the list. The 0 characters from here on were not seen.")]),
    ("\noops", [(1, "unseen: This file begins with 'o'; rows in JSON begin with [ or {. The 4 characters from here on were not seen.")]),
    ('{"d": [{"a": 1}], "e":\n[{"a": 2}]}', [(1, A1), (2, "unseen: This object holds more than one list of rows. The 11 characters from here on were not seen.")]),
    ('{"a": 1,\n"a": 2}', [(1, f"unseen: {TWICE}. The 3 characters from here on were not seen.")]),
    ('{"a" 1}', [(1, "unseen: The JSON is broken: a key and a colon are expected. The 1 characters from here on were not seen.")]),
    ('{"a": 1', [(1, "unseen: The JSON is broken: the file ends inside an object. The 0 characters from here on were not seen.")]),
    ('{"a": 1 "b"}', [(1, "unseen: The JSON is broken: a comma or } is missing before '\"'. The 4 characters from here on were not seen.")]),
]  # fmt: skip


@pytest.mark.parametrize("size", [8, 13, 30, 1 << 20])
@pytest.mark.parametrize(("text", "expected"), CASES, ids=range(len(CASES)))
def test_a_document_is_the_same_in_any_pieces(text, expected, size):
    tally = Tally()
    assert shown(_read_document(buffer_of(text, size), tally)) == expected
    unseen = sum(isinstance(words, str) and words.startswith("unseen") for _, words in expected)
    assert tally.rows == len(expected) - unseen, "each row is counted where it begins"


def test_what_stands_beside_a_list_is_listed():
    tally = Tally()
    text = '{"v": 1, "data": [ {"a": 1},\n {"a": 2} ], "more": "x"}'
    assert shown(_read_document(buffer_of(text, 9), tally)) == [(1, A1), (2, A2)]
    assert tally.passed_over == ["f: the value of 'v', beside the rows", "f: the value of 'more', beside the rows"]


@pytest.fixture
def small(monkeypatch):
    """Bounds that a line of text reaches."""
    monkeypatch.setattr(json_buffer, "MAX_LINE_BYTES", 40)
    monkeypatch.setattr(json_buffer, "_SEARCHED_CHARS", 160)
    monkeypatch.setattr(json_buffer, "_LOOKED_AT_FIRST", 10)


def row_of(length):
    return '{"a": "' + "x" * (length - 9) + '"}'


OVER = "This row is longer than 16 MB."
OPEN = "This row is longer than 16 MB, or a quote or bracket never closes."


@pytest.mark.parametrize("size", [10, 1 << 20])
def test_a_row_of_the_longest_length_is_read_and_a_longer_one_costs_itself(small, size):
    text = f'[{{"a": 1}}, {row_of(40)}, {row_of(41)}, {{"a": 3}}]'
    found = shown(_read_document(buffer_of(text, size), Tally()))
    assert found[:2] == [(1, A1), (1, {"a": "x" * 31})] and found[3:] == [(1, A3)]
    assert found[2] in [(1, OVER), (1, OPEN)]


def test_a_quote_that_stays_open_is_not_read_to_the_end_of_a_large_file(small):
    pieces = iter(['[{"a": 1}, {"a": "x', *["y" * 10] * 100])
    buffer = JsonBuffer(DecodedText(io.BytesIO(b"")), pieces, "f")
    found = shown(_read_document(buffer, Tally()))
    assert found[0] == (1, A1) and found[1][1] == OPEN
    assert re.fullmatch(
        r"unseen: Behind this broken row the next one cannot be found\. The 10\d\d characters .*", found[2][1]
    )


def test_the_next_row_is_looked_for_as_far_as_it_may_lie(small):
    for gap, known in ((100, True), (400, False)):
        text = '[{"a": 1}, {"a": "' + "y" * gap + ', {"a": 2}]'
        found = shown(_read_document(buffer_of(text, 10), Tally()))
        assert ((1, A2) in found) == known


@pytest.mark.parametrize(
    ("head", "one"),
    [
        ('[{"a"', True), (" \n[ {", True), ("[]", True), ("[1]", False), ("{\n", True), (" { \t\r\n", True), ('{"a": 1}\n', False),
        ("", False), ('x[{', False),
    ],
)  # fmt: skip
def test_a_document_under_the_name_of_lines_is_known_by_its_beginning(head, one):
    assert _is_one_document(head) == one


def test_lines_and_documents_are_read_under_each_others_name():
    document, lines = b'[{"a": 1},\n{"a": 2}]', b'{"a": 1}\n\n{"a": }\n7\n'
    tally = Tally()
    assert shown(read_jsonl(io.BytesIO(document), "f", tally)) == [(1, A1), (2, A2)]
    assert tally.notes == ["f is one JSON document and no JSON Lines; it was read as such."] and tally.rows == 2
    tally = Tally()
    assert shown(read_jsonl(io.BytesIO(lines), "f", tally)) == [(1, A1), (3, VALUE), (4, NUMBER)]
    assert (tally.notes, tally.rows) == ([], 3)
    assert shown(read_json(io.BytesIO(b'{"a": 1}\n{"a": 2}\n7'), "f", Tally())) == [(1, A1), (2, A2), (3, NUMBER)]


def test_the_first_item_of_a_list_tells_rows_even_where_it_is_cut():
    def is_row(item):
        return isinstance(item, dict)

    assert buffer_of('[ {"a": 1}]', 3).holds_rows(is_row)
    assert not buffer_of("[ 1]", 3).holds_rows(is_row)
    assert buffer_of('[ {"a": x').holds_rows(is_row), "broken, and it begins like a row"
    assert not buffer_of("[ x").holds_rows(is_row)


def test_a_wrong_byte_is_named_with_its_line():
    text = DecodedText(io.BytesIO(b'[{"a":\n\n"\xe9"}]'))
    buffer = JsonBuffer(text, iter(text), "f")
    buffer.take()
    with pytest.raises(StudioError) as caught:
        buffer.row()
    assert caught.value.message == "f:3: The byte 0xe9 is not UTF-8 text."


TURN, CALL, TOOL = {"role": "user", "content": "q"}, {"function": {"name": "f"}}, {"name": "f", "description": "d"}


@pytest.mark.parametrize(
    ("first", "is_row"),
    [
        ({"a": 1}, True), ({}, True), (7, False), ("a", False), ([], False), (None, False),
        (TURN, False), ({"from": "human", "value": "q"}, False), ({"speaker": "x", "a": 1}, False),
        (CALL, False), ({"function": "f"}, True),
        (TOOL, False), ({"name": "f", "parameters": {}}, False), ({"name": "f"}, True),
        ({"parameters": {}, "description": "d"}, True),
        ({"text": "t", "label": 1}, False), ({"text": "t"}, True), ({"label": 1}, True), ({"text": "t", "label": 1, "a": 1}, True),
        ({"type": "text", "text": "t"}, False), ({"type": "text"}, True), ({"type": "text", "text": "t", "a": 1}, True),
        ({"type": "text", "value": "t"}, False), ({"value": "t"}, True), ({"type": "text", "value": "t", "a": 1}, True),
    ],
)  # fmt: skip
def test_a_list_of_what_reads_like_rows_is_rows_and_any_other_is_a_field(first, is_row):
    items = [first, {"b": 2}]
    text = json.dumps({"rows": items})
    if is_row:
        expected = [Row("f", 1, item) for item in items]
    else:
        expected = [Row("f", 1, {"rows": items})]
    assert list(read_json(io.BytesIO(text.encode()), "f", Tally())) == expected


class Noted:
    """A decoder that remembers how much text it was tried on."""

    def __init__(self):
        self.tried = []

    def raw_decode(self, text, place):
        self.tried.append(len(text) - place)
        return DECODER.raw_decode(text, place)


@pytest.mark.parametrize(
    ("bound", "length", "tried"),
    [
        (1 << 20, 95, [10, 20, 40, 80, 95]),
        (1 << 20, 80, [10, 20, 40, 80]),
        (70, 70, [10, 20, 40, 70]),
        (70, 71, [10, 20, 40, 70, 71]),
        (70, 200, [10, 20, 40, 70, 80]),
    ],
)
def test_a_long_row_is_tried_again_when_twice_as_much_of_it_is_there(monkeypatch, bound, length, tried):
    """With each piece it would take the square of its length."""
    decoder = Noted()
    monkeypatch.setattr(json_buffer, "DECODER", decoder)
    monkeypatch.setattr(json_buffer, "MAX_LINE_BYTES", bound)
    buffer = buffer_of(row_of(length), 10)
    assert buffer.peek() == "{"
    if length > bound:
        with pytest.raises(StudioError, match="longer than 16 MB"):
            buffer.row()
    else:
        assert buffer.row() == {"a": "x" * (length - 9)}
    assert decoder.tried == tried


@pytest.mark.parametrize(
    ("length", "pieces"),
    [(9, 1), (10, 2), (19, 2), (20, 4), (39, 4), (40, 8), (79, 8), (80, 16)],
)
def test_no_more_is_read_than_it_takes_to_find_the_next_row(monkeypatch, length, pieces):
    """What is looked through doubles each time: from 10 characters, in pieces of 10."""
    monkeypatch.setattr(json_buffer, "_LOOKED_AT_FIRST", 10)
    text = "x" * length + ", {}" + " " * 500
    drawn = []

    def in_pieces():
        for at in range(0, len(text), 10):
            drawn.append(at)
            yield text[at : at + 10]

    buffer = JsonBuffer(DecodedText(io.BytesIO(b"")), in_pieces(), "f")
    buffer.skip_row()
    assert (buffer.peek(), len(drawn)) == (",", pieces)


def test_a_row_that_is_one_brace_costs_itself_alone():
    for text in ('[{"a": 1}, {, {"a": 3}]', '[{"a": 1},{,{"a": 3}]'):
        (first, (line, words), third) = shown(_read_document(buffer_of(text), Tally()))
        assert (first, line, third) == ((1, A1), 1, (1, A3)) and words.startswith("The JSON is broken at column _")


@pytest.mark.parametrize(("length", "size", "looks_like_rows"), [(38, 13, False), (39, 10, True), (45, 10, True)])
def test_the_first_item_is_looked_at_as_far_as_the_longest_row_goes(small, length, size, looks_like_rows):
    """A turn is no row; of one that is longer only its brace is seen."""
    turn = '{"role": "' + "x" * (length - 12) + '"}'
    buffer = buffer_of("[" + turn + " " * 60, size)
    assert buffer.peek() == "[" and len(turn) == length
    assert buffer.holds_rows(lambda item: "role" not in item) == looks_like_rows


@pytest.mark.parametrize(("length", "found"), [(161, True), (319, True), (320, False)])
def test_the_next_row_is_looked_for_until_what_was_looked_through_is_over_the_bound(small, length, found):
    """Of 160 characters here: windows of 10, 20, 40, 80, 160 and 320."""
    text = "x" * length + ", {}" + " " * 500
    pieces = iter([text[at : at + 10] for at in range(0, len(text), 10)])
    buffer = JsonBuffer(DecodedText(io.BytesIO(b"")), pieces, "f")
    if found:
        buffer.skip_row()
        assert buffer.peek() == ","
    else:
        with pytest.raises(StudioError) as caught:
            buffer.skip_row()
        said = "Behind this broken row the next one cannot be found."
        assert caught.value.problems == (Problem(said, "Fix this row, or save the file again.", "f:1"),)
    assert len(list(pieces)) == len(range(0, len(text), 10)) - 32


@pytest.mark.parametrize(
    ("beginning", "pieces", "reason"),
    [
        ("{,", 2, "expecting property name enclosed in double quotes"),
        ('{""x', 2, "expecting ':' delimiter"),  # at place 3 of 20: sixteen characters follow
        ('{"":x', 4, "expecting value"),  # at place 4 of 20: fifteen do
        ('{"a": "b" "c', 4, "expecting ',' delimiter"),
    ],
)
def test_an_error_is_said_as_soon_as_it_cannot_be_a_word_that_is_cut(beginning, pieces, reason):
    """Sixteen characters must follow it. A row is tried with 10 characters, 20, 40 and so on."""
    text = beginning + " " * 500
    left = iter([text[at : at + 10] for at in range(0, len(text), 10)])
    drawn = len(range(0, len(text), 10))
    buffer = JsonBuffer(DecodedText(io.BytesIO(b"")), left, "f")
    buffer.peek()
    with pytest.raises(StudioError, match=f"The JSON is broken at column .*: {reason}"):
        buffer.value()
    assert drawn - len(list(left)) == pieces
