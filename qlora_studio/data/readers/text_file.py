"""Bytes become text: byte-order marks, UTF-8 and UTF-16, every kind of line end, lines of bounded length.

A byte that is no text becomes a lone surrogate, which no text holds. So a reader refuses the row that holds it and
goes on with the next one.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from qlora_studio.core.errors import Problem
from qlora_studio.data.readers.rows import MAX_LINE_BYTES, MAX_LINE_MB, Row, RowOrProblem, Tally

_CHUNK_BYTES = 1 << 20
_PIECE_CHARS = 3000
"""Where a text file is cut at the next blank line: about 750 tokens of English."""
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_BAD_BYTE_BASE = 0xDC00
_BAD_BYTE = re.compile("[\udc00-\udcff]")
_HANDLER = "qlora-studio-keep-bad-bytes"
"""Name of the codec error handler."""


def _keep_bad_bytes(error: UnicodeError) -> tuple[str, int]:
    """A codec error handler that keeps each byte as the lone surrogate U+DC00 plus its value."""
    assert isinstance(error, UnicodeDecodeError)
    return "".join(chr(_BAD_BYTE_BASE + byte) for byte in error.object[error.start : error.end]), error.end


class DecodedText:
    """Decoded pieces of a stream. `damaged` is true once a byte was met that is not text."""

    def __init__(self, stream: BinaryIO) -> None:
        codecs.register_error(_HANDLER, _keep_bad_bytes)
        head = stream.read(_CHUNK_BYTES)
        self.encoding, skip = _encoding(head)
        self.damaged = False
        self._stream, self._chunk = stream, head[skip:]

    def __iter__(self) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder(self.encoding)(_HANDLER)
        while True:
            text = decoder.decode(self._chunk, final=not self._chunk)
            if text:
                self.damaged = self.damaged or not _can_be_written(text)
                yield text
            if not self._chunk:
                return
            self._chunk = self._stream.read(_CHUNK_BYTES)

    def find_bad_byte(self, text: str) -> re.Match[str] | None:
        """Where a byte stands in this text that is none; quick as long as there is none in the file."""
        return _BAD_BYTE.search(text) if self.damaged else None

    def not_text(self, found: re.Match[str], where: str) -> Problem:
        """The sentence for a byte that is not text."""
        return Problem(
            f"The byte 0x{ord(found[0]) - _BAD_BYTE_BASE:02x} is not {self.encoding.upper()} text.",
            "Save the file as UTF-8; it may be Latin-1 or Windows-1252 now.",
            where,
        )


def read_lines(text: Iterable[str]) -> Iterator[tuple[int, str | None]]:
    """Lines with their numbers, without line ends (LF, CRLF or CR); None stands for a line that is too long."""
    number, rest, too_long = 0, "", False
    for chunk in text:
        joined = rest + chunk
        held = ""
        if joined.endswith("\r"):
            joined, held = joined[:-1], "\r"
        if "\r" in joined:
            joined = joined.replace("\r\n", "\n").replace("\r", "\n")
        *lines, rest = joined.split("\n")
        rest += held
        for line in lines:
            number += 1
            yield number, None if too_long or len(line) > MAX_LINE_BYTES else line
            too_long = False
        if len(rest) > MAX_LINE_BYTES:
            too_long, rest = True, rest[-1:]  # the last character may be half of a CRLF
    if rest:
        for line in rest.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n"):
            number += 1
            yield number, None if too_long else line
            too_long = False


def _can_be_written(text: str) -> bool:
    """Whether no lone surrogate stands in it; encoding is the quickest way to look."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def line_too_long(where: str) -> Problem:
    return Problem(f"This line is longer than {MAX_LINE_MB} MB.", "Put one row on each line, or split the row.", where)


def _encoding(head: bytes) -> tuple[str, int]:
    for mark, encoding in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return encoding, len(mark)
    if len(head) > 3 and head[1] == 0 and head[0] and head[3] == 0:
        return "utf-16-le", 0
    if len(head) > 3 and head[0] == 0 and head[1] and head[2] == 0:
        return "utf-16-be", 0
    return "utf-8", 0


def read_pieces(stream: BinaryIO, file: str, tally: Tally) -> Iterator[RowOrProblem]:
    """A text file as rows of one field, `text`: cut between paragraphs into pieces of a few thousand characters.

    The pieces joined are the text again, with LF as line end, so nothing is lost. Training cuts what is longer than
    the max sequence length by tokens.
    """
    text = DecodedText(stream)
    held: list[str] = []
    size, begins = 0, 1
    problem: Problem | None = None
    for number, line in read_lines(text):
        if line is None:
            problem = problem or line_too_long(f"{file}:{number}")
            line = " too long "
        elif found := text.find_bad_byte(line):
            problem = problem or text.not_text(found, f"{file}:{number}")
        size += len(line) + 1
        held.append(line + "\n")
        if (size > _PIECE_CHARS and not line.strip()) or size > 4 * _PIECE_CHARS:
            yield from _piece(held, file, begins, problem, tally)
            held, size, begins, problem = [], 0, number + 1, None
    yield from _piece(held, file, begins, problem, tally)


def _piece(held: list[str], file: str, line: int, problem: Problem | None, tally: Tally) -> Iterator[RowOrProblem]:
    text = "".join(held)
    if not text.strip():
        return
    tally.rows += 1
    yield problem or Row(file, line, {"text": text})
