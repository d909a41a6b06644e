"""Text from bytes: encodings by their first bytes, line ends across pieces, and where a text file is cut."""

from __future__ import annotations

import io

import pytest

from qlora_studio.core.errors import Problem
from qlora_studio.data.readers import text_file
from qlora_studio.data.readers.rows import Row, Tally
from qlora_studio.data.readers.text_file import DecodedText, _encoding, line_too_long, read_lines, read_pieces


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (b"\xef\xbb\xbfabc", ("utf-8", 3)),
        (b"\xff\xfea\0", ("utf-16-le", 2)),
        (b"\xfe\xff\0a", ("utf-16-be", 2)),
        (b"a\0b\0", ("utf-16-le", 0)),
        (b"\0a\0b", ("utf-16-be", 0)),
        (b"a\0b", ("utf-8", 0)),
        (b"\0a\0", ("utf-8", 0)),
        (b"a\0bc", ("utf-8", 0)),
        (b"\0abc", ("utf-8", 0)),
        (b"\0\0b\0", ("utf-8", 0)),
        (b"\0\0\0b", ("utf-8", 0)),
        (b"abcd", ("utf-8", 0)),
        (b"", ("utf-8", 0)),
    ],
)
def test_the_encoding_is_told_by_the_first_bytes(head, found):
    assert _encoding(head) == found


@pytest.mark.parametrize("chunk", [4, 5, 7, 1 << 20])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_text_is_the_same_in_chunks_of_any_size(monkeypatch, chunk, encoding):
    text = "a\u00e9\u4f60\U0001f600b"
    monkeypatch.setattr(text_file, "_CHUNK_BYTES", chunk)
    decoded = DecodedText(io.BytesIO(text.encode(encoding)))
    assert "".join(decoded) == text and not decoded.damaged


@pytest.mark.parametrize("chunk", [1, 4, 1 << 20])
def test_a_byte_that_is_no_text_is_kept_and_named(monkeypatch, chunk):
    monkeypatch.setattr(text_file, "_CHUNK_BYTES", chunk)
    decoded = DecodedText(io.BytesIO(b"\xe4b\xff"))
    assert decoded.find_bad_byte("\udce9") is None, "before any was met nothing is looked for"
    text = "".join(decoded)
    assert (text, decoded.damaged) == ("\udce4b\udcff", True)
    found = decoded.find_bad_byte(text[1:])
    assert decoded.not_text(found, "f:3") == Problem(
        "The byte 0xff is not UTF-8 text.", "Save the file as UTF-8; it may be Latin-1 or Windows-1252 now.", "f:3"
    )


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("\n", [""]),
        ("a", ["a"]),
        ("a\n", ["a"]),
        ("a\nb", ["a", "b"]),
        ("a\r\nb\r\n", ["a", "b"]),
        ("a\rb\r", ["a", "b"]),
        ("a\r\r\nb\n\rc", ["a", "", "b", "", "c"]),
        ("\r", [""]),
        ("\r\n\r", ["", ""]),
        ("a\n\n", ["a", ""]),
    ],
)
def test_lines_are_the_same_in_pieces_of_any_size(text, lines):
    for size in (1, 2, 3, 100):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        assert list(read_lines(pieces)) == list(enumerate(lines, 1)), size


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_a_line_that_is_too_long_is_one_line_without_text(monkeypatch, size):
    monkeypatch.setattr(text_file, "MAX_LINE_BYTES", 4)
    text = "abcd\nabcde\r\nx\rabcdefgh\r\n\ny\nabcdefg"
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    found = list(read_lines(pieces))
    assert found[:6] == [(1, "abcd"), (2, None), (3, "x"), (4, None), (5, ""), (6, "y")]
    assert found[6:] == [(7, None)]
    assert line_too_long("f:2") == Problem(
        "This line is longer than 16 MB.", "Put one row on each line, or split the row.", "f:2"
    )


def pieces_of(data):
    tally = Tally()
    found = list(read_pieces(io.BytesIO(data), "f", tally))
    assert tally.rows == len(found)
    return found


def test_a_text_is_cut_at_a_blank_line_behind_the_length_of_a_piece(monkeypatch):
    monkeypatch.setattr(text_file, "_PIECE_CHARS", 10)
    assert pieces_of(b"abcd\n\nefg\n\nhij\n\n\n") == [
        # 5 + 1 + 4 characters are ten and not more: the blank line behind them makes eleven
        Row("f", 1, {"text": "abcd\n\nefg\n\n"}),
        Row("f", 5, {"text": "hij\n\n\n"}),
    ]
    assert pieces_of(b"abcd\n\nef\n\nhij\n") == [Row("f", 1, {"text": "abcd\n\nef\n\nhij\n"})]


def test_a_text_without_blank_lines_is_cut_at_four_times_that_length(monkeypatch):
    monkeypatch.setattr(text_file, "_PIECE_CHARS", 10)
    assert pieces_of(b"123456789\n" * 9) == [
        Row("f", 1, {"text": "123456789\n" * 5}), Row("f", 6, {"text": "123456789\n" * 4}),
    ]  # fmt: skip


def test_blank_stretches_are_no_rows_and_a_bad_byte_costs_its_piece(monkeypatch):
    monkeypatch.setattr(text_file, "_PIECE_CHARS", 3)
    assert pieces_of(b" \n\n\n \n \n") == []
    good, bad, last = pieces_of(b"abc\n\nd\xe9f\n\xe8\n\nghi\n")
    assert (good, last) == (Row("f", 1, {"text": "abc\n\n"}), Row("f", 6, {"text": "ghi\n"}))
    assert (bad.message, bad.where) == ("The byte 0xe9 is not UTF-8 text.", "f:3")


def test_the_first_thing_wrong_with_a_piece_is_named(monkeypatch):
    monkeypatch.setattr(text_file, "MAX_LINE_BYTES", 6)
    (bad,) = pieces_of(b"ab\nabcdefg\n\xe9\n" + b"abcdefg\n")
    assert bad == line_too_long("f:2")
    (bad,) = pieces_of(b"ab\n\xe9\nabcdefg\n")
    assert bad.where == "f:2" and "0xe9" in bad.message
