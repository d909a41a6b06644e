"""Bytes become text: byte-order marks, UTF-8 and UTF-16, every kind of line end, lines of bounded length."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import BinaryIO

from qlora_studio.core.errors import StudioError
from qlora_studio.data.readers.rows import MAX_LINE_BYTES, Row, RowOrProblem

_CHUNK_BYTES = 1 << 20
_PIECE_CHARS = 3000
"""Where a text file is cut at the next blank line: about 750 tokens of English."""
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


def read_chunks(stream: BinaryIO, file: str) -> Iterator[str]:
    """Decoded text in pieces. Raises a StudioError with file and line at the first byte that is not text."""
    head = stream.read(_CHUNK_BYTES)
    encoding, skip = _encoding(head)
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    line, chunk = 1, head[skip:]
    while True:
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            line += error.object[: error.start].count(b"\n")
            raise _not_text(error, encoding, file, line) from None
        if text:
            line += text.count("\n")
            yield text
        if not chunk:
            return
        chunk = stream.read(_CHUNK_BYTES)


def read_lines(stream: BinaryIO, file: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, without line ends (LF, CRLF or CR). Raises a StudioError for one too long."""
    number, rest = 0, ""
    for chunk in read_chunks(stream, file):
        text = rest + chunk
        held = ""
        if text.endswith("\r"):
            text, held = text[:-1], "\r"
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        *lines, rest = text.split("\n")
        rest += held
        for line in lines:
            number += 1
            yield number, line
        if len(rest) > MAX_LINE_BYTES:
            raise StudioError(
                f"This line is longer than {MAX_LINE_BYTES >> 20} MB.",
                "Put one row on each line, or split the row.",
                where=f"{file}:{number + 1}",
            )
    if rest:
        for line in rest.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n"):
            number += 1
            yield number, line


def _encoding(head: bytes) -> tuple[str, int]:
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding, len(mark)
    if len(head) > 3 and head[1] == 0 and head[0] and head[3] == 0:
        return "utf-16-le", 0
    if len(head) > 3 and head[0] == 0 and head[1] and head[2] == 0:
        return "utf-16-be", 0
    return "utf-8", 0


def _not_text(error: UnicodeDecodeError, encoding: str, file: str, line: int) -> StudioError:
    byte = error.object[error.start]
    return StudioError(
        f"The byte 0x{byte:02x} is not {encoding.upper()} text.",
        "Save the file as UTF-8; it may be Latin-1 or Windows-1252 now.",
        where=f"{file}:{line}",
    )


def read_pieces(stream: BinaryIO, file: str) -> Iterator[RowOrProblem]:
    """A text file as rows of one field, `text`: cut between paragraphs into pieces of a few thousand characters.

    The pieces joined are the text again, with LF as line end, so nothing is lost and each fits a training row.
    """
    held: list[str] = []
    size, begins = 0, 1
    try:
        for number, line in read_lines(stream, file):
            size += len(line) + 1
            held.append(line + "\n")
            if (size > _PIECE_CHARS and not line.strip()) or size > 4 * _PIECE_CHARS:
                if "".join(held).strip():
                    yield Row(file, begins, {"text": "".join(held)})
                held, size, begins = [], 0, number + 1
    except StudioError as error:
        yield error.problems[0]
        return
    if "".join(held).strip():
        yield Row(file, begins, {"text": "".join(held)})
