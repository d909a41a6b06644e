"""JSON and JSON Lines, read strictly and in pieces: a row is whole or a problem with its line, memory stays flat."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.data.readers.rows import MAX_DEPTH, MAX_LINE_BYTES, Row, RowOrProblem
from qlora_studio.data.readers.text_file import read_chunks, read_lines

_SPACE = re.compile(r"[ \t\n\r]*")
_PYTHON_DICT = re.compile(r"^\s*\{\s*'")


class _Refused(ValueError):
    """JSON that Python would read and that would change on the way."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Refused(f"The key '{twice}' stands twice in one object")
    return values


def _constant(name: str) -> Any:
    raise _Refused(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant)


def parse_json(text: str, where: str) -> Any:
    """One JSON value. Raises a StudioError that says what is wrong with it and where."""
    try:
        _check_depth(text)
        value, end = _DECODER.raw_decode(text, _skip(text, 0))
        rest = _skip(text, end)
        if rest < len(text):
            raise _Refused(f"There is more after the end of the row, at column {rest + 1}")
        _check_text(text)
    except (ValueError, RecursionError) as error:
        raise _broken(error, text, where) from None
    return value


def read_jsonl(stream: BinaryIO, file: str) -> Iterator[RowOrProblem]:
    """One row a line; blank lines count but hold none."""
    try:
        for number, line in read_lines(stream, file):
            if not line or line.isspace():
                continue
            try:
                value = parse_json(line, f"{file}:{number}")
            except StudioError as error:
                yield error.problems[0]
                continue
            yield _row(value, file, number)
    except StudioError as error:
        yield error.problems[0]


def read_json(stream: BinaryIO, file: str) -> Iterator[RowOrProblem]:
    """A list of rows, an object that wraps one list, an object of rows, or JSON Lines under the wrong name."""
    buffer = _Buffer(read_chunks(stream, file), file)
    try:
        opening = buffer.peek()
        if opening == "[":
            yield from _read_list(buffer)
            _check_end(buffer)
        elif opening == "{":
            yield from _read_object(buffer)
        elif opening:
            raise StudioError(
                f"This file begins with {opening!r}; rows in JSON begin with [ or {{.",
                "Give a list of objects.",
                where=f"{file}:1",
            )
    except StudioError as error:
        yield error.problems[0]


class _Buffer:
    """Text that is read on as far as the next value needs it."""

    def __init__(self, chunks: Iterator[str], file: str) -> None:
        self.chunks, self.file = chunks, file
        self.text, self.place, self.line = "", 0, 1
        self.ended = False

    def more(self) -> bool:
        """Reads on; False at the end of the file."""
        if self.ended:
            return False
        chunk = next(self.chunks, None)
        if chunk is None:
            self.ended = True
            return False
        self.text = self.text[self.place :] + chunk
        self.place = 0
        return True

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            self.advance(_skip(self.text, self.place))
            if self.place < len(self.text):
                return self.text[self.place]
            if not self.more():
                return ""

    def advance(self, place: int) -> None:
        self.line += self.text.count("\n", self.place, place)
        self.place = place

    def take(self) -> str:
        character = self.peek()
        self.advance(self.place + len(character))
        return character

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"

    def value(self) -> Any:
        """The next JSON value. Raises a StudioError with the line where it goes wrong."""
        self.peek()
        wanted = 0
        while True:
            if len(self.text) - self.place >= wanted or self.ended:
                try:
                    value, end = _DECODER.raw_decode(self.text, self.place)
                except (ValueError, RecursionError) as error:
                    if self._is_complete(error):
                        raise _broken(error, self.text, self.where, self.place) from None
                    wanted = 2 * (len(self.text) - self.place)
                else:
                    if end < len(self.text) or self.ended or not isinstance(value, int | float):
                        self._check(end)
                        self.advance(end)
                        return value
            if len(self.text) - self.place > MAX_LINE_BYTES:
                raise StudioError(
                    f"This row is longer than {MAX_LINE_BYTES >> 20} MB, or a quote or bracket never closes.",
                    "Look at this row, or split it.",
                    where=self.where,
                )
            self.more()

    def _is_complete(self, error: Exception) -> bool:
        """Whether the error stands even when more text follows."""
        if self.ended or isinstance(error, RecursionError | _Refused):
            return True
        if not isinstance(error, json.JSONDecodeError) or error.msg.startswith("Unterminated string"):
            return not isinstance(error, json.JSONDecodeError)
        return error.pos < len(self.text) - 16  # far enough from the edge that the rest of a literal is not missing

    def _check(self, end: int) -> None:
        raw = self.text[self.place : end]
        try:
            _check_depth(raw)
            _check_text(raw)
        except _Refused as error:
            raise _broken(error, raw, self.where) from None


def _read_list(buffer: _Buffer) -> Iterator[RowOrProblem]:
    buffer.take()
    if buffer.peek() == "]":
        buffer.take()
        return
    while True:
        buffer.peek()
        line = buffer.line
        yield _row(buffer.value(), buffer.file, line)
        mark = buffer.take()
        if mark == "]":
            return
        if mark != ",":
            said = f"a comma or ] is missing before {mark!r}" if mark else "the file ends inside the list"
            raise StudioError(f"The JSON is broken: {said}.", "Mend the file, or save it again.", where=buffer.where)
        if buffer.peek() == "]":
            raise StudioError(
                "The JSON is broken: a comma stands before ].", "Remove the last comma.", where=buffer.where
            )


def _read_object(buffer: _Buffer) -> Iterator[RowOrProblem]:
    """`{"data": [...]}`, `{"0": {...}, "1": {...}}`, or one row a line although the file is named .json."""
    start = buffer.line
    buffer.take()
    held: dict[str, Any] = {}
    rows = lists = 0
    while buffer.peek() != "}":
        line = buffer.line
        key = buffer.value()
        if not isinstance(key, str) or buffer.take() != ":":
            raise StudioError(
                "The JSON is broken: a key and a colon are expected.", "Mend the file.", where=buffer.where
            )
        if buffer.peek() == "[" and not rows and _looks_like_rows(buffer):
            lists += 1
            if lists > 1:
                raise StudioError(
                    "This object holds more than one list of rows.",
                    "Give one list a file.",
                    where=buffer.where,
                    field=key,
                )
            yield from _read_list(buffer)
        else:
            value = buffer.value()
            if isinstance(value, dict) and not held and not lists:
                rows += 1
                yield Row(buffer.file, line, value)
            else:
                held[key] = value
        mark = buffer.peek()
        if mark == ",":
            buffer.take()
        elif mark != "}":
            said = "the file ends inside an object" if not mark else f"a comma or }} is missing before {mark!r}"
            raise StudioError(f"The JSON is broken: {said}.", "Mend the file.", where=buffer.where)
    buffer.take()
    if held and not lists and not rows:
        yield Row(buffer.file, start, held)
    elif held and rows:
        raise StudioError(
            f"The key '{next(iter(held))}' stands beside rows and is none itself.",
            "Give a list of rows.",
            where=f"{buffer.file}:{start}",
        )
    while buffer.peek() == "{":  # JSON Lines under the name .json
        line = buffer.line
        yield _row(buffer.value(), buffer.file, line)
    _check_end(buffer)


def _check_end(buffer: _Buffer) -> None:
    if mark := buffer.peek():
        raise StudioError(f"There is more after the end of the rows: {mark!r}.", "Remove it.", where=buffer.where)


def _looks_like_rows(buffer: _Buffer) -> bool:
    """Whether the list that follows holds objects that are rows: a list of turns belongs to a row itself."""
    while len(buffer.text) - buffer.place < 4096 and buffer.more():
        pass
    inside = _SPACE.sub("", buffer.text[buffer.place + 1 : buffer.place + 400])[:200]
    return inside.startswith("{") and not re.match(r'\{"(role|from|content|value|text|label)":', inside)


def _row(value: Any, file: str, line: int) -> RowOrProblem:
    if isinstance(value, dict):
        return Row(file, line, value)
    kind = {list: "a list", str: "text", bool: "true or false", type(None): "null"}.get(type(value), "a number")
    return Problem(f"This row is {kind}, not an object with fields.", "Each row is {...}.", f"{file}:{line}")


def _skip(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    assert match
    return match.end()


def _check_depth(text: str) -> None:
    """Raises where brackets nest deeper than the bound; counts only where that could be."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth, inside = 0, False
    for match in re.finditer(r'\\.|["\[\]{}]', text, re.DOTALL):
        mark = match[0]
        if mark == '"':
            inside = not inside
        elif not inside and mark in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise _Refused(f"This row is nested deeper than {MAX_DEPTH} levels")
        elif not inside and mark in "]}":
            depth -= 1


def _check_text(text: str) -> None:
    """Raises for half a surrogate pair, which is no character and cannot be written again."""
    if "\\ud" in text or "\\uD" in text:
        for match in re.finditer(r"\\\\|\\u([dD][89abAB]..)(\\u[dD][c-fC-F]..)?|\\u([dD][c-fC-F]..)", text):
            if match[0] != "\\\\" and not match[2]:
                raise _Refused(f"{match[0]} is half of a character")


def _broken(error: Exception, text: str, where: str, start: int = 0) -> StudioError:
    """The sentence for a JSON error of the row that begins at `start`, at the line `where` names."""
    if isinstance(error, RecursionError):
        return StudioError(f"This row is nested deeper than {MAX_DEPTH} levels.", "Flatten it.", where=where)
    if isinstance(error, _Refused):
        return StudioError(f"{error}.", "Mend this row.", where=where)
    if _PYTHON_DICT.match(text[start : start + 100]):
        return StudioError(
            "This is a Python dictionary, not JSON: keys stand in single quotes.",
            "Write it with json.dumps.",
            where=where,
        )
    if isinstance(error, json.JSONDecodeError):
        file, _, line = where.rpartition(":")
        number = int(line) + text.count("\n", start, error.pos)
        said = error.msg[:1].lower() + error.msg[1:]
        return StudioError(
            f"The JSON is broken at column {error.colno}: {said}.", "Mend this row.", where=f"{file}:{number}"
        )
    return StudioError(f"A number here is too long to read: {error}.", "Write it as text.", where=where)
