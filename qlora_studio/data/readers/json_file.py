"""JSON and JSON Lines, read strictly and in pieces: a row is whole or a problem with its line, memory stays flat."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from typing import Any, BinaryIO

from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.data.readers.json_buffer import JsonBuffer
from qlora_studio.data.readers.rows import Row, RowOrProblem, Tally
from qlora_studio.data.readers.strict_json import key_twice, parse_json
from qlora_studio.data.readers.text_file import DecodedText, line_too_long, read_lines

INNER_LISTS = frozenset(
    [
        "messages",
        "conversations",
        "conversation",
        "dialog",
        "dialogue",
        "chat",
        "texts",
        "turns",
        "tools",
        "functions",
        "tool_calls",
        "segments",
        "history",
        "chosen",
        "rejected",
        "prompt",
        "completion",
        "completions",
        "contents",
        "choices",
        "answers",
        "options",
    ]
)
"""Lists under these names belong to a row."""
_TURN_KEYS = frozenset({"role", "from", "speaker"})


def read_jsonl(stream: BinaryIO, file: str, tally: Tally) -> Iterator[RowOrProblem]:
    """One row a line; blank lines count but hold none. A file that is one JSON document is read as such."""
    text = DecodedText(stream)
    pieces = iter(text)
    head = next(pieces, "")
    if _is_one_document(head):
        tally.notes.append(f"{file} is one JSON document and no JSON Lines; it was read as such.")
        yield from _read_document(JsonBuffer(text, chain([head], pieces), file), tally)
        return
    yield from _read_rows_by_line(text, chain([head], pieces), file, tally)


def _read_rows_by_line(text: DecodedText, pieces: Iterator[str], file: str, tally: Tally) -> Iterator[RowOrProblem]:
    for number, line in read_lines(pieces):
        if line is not None and (not line or line.isspace()):
            continue
        tally.rows += 1
        where = f"{file}:{number}"
        if line is None:
            yield line_too_long(where)
        elif found := text.find_bad_byte(line):
            yield text.not_text(found, where)
        else:
            try:
                value = parse_json(line, where)
            except StudioError as error:
                yield error.problems[0]
                continue
            yield _row(value, file, number)


def _is_one_document(head: str) -> bool:
    """A list of objects over the whole file, or an object written over several lines."""
    return re.match(r"\s*\[\s*[{\]]", head) is not None or re.match(r"\s*\{[ \t]*\r?\n", head) is not None


def read_json(stream: BinaryIO, file: str, tally: Tally) -> Iterator[RowOrProblem]:
    """A list of rows, an object that wraps one list, an object of rows, one row, or JSON Lines under the wrong name."""
    text = DecodedText(stream)
    pieces = iter(text)
    head = next(pieces, "")
    if re.match(r"\s*\{[^\n]*\}[ \t\r]*\n\s*\{", head):
        yield from _read_rows_by_line(text, chain([head], pieces), file, tally)
    else:
        yield from _read_document(JsonBuffer(text, chain([head], pieces), file), tally)


def _read_document(buffer: JsonBuffer, tally: Tally) -> Iterator[RowOrProblem]:
    opening = buffer.peek()
    try:
        if opening == "[":
            yield from _read_list(buffer, tally)
        elif opening == "{":
            yield from _Object(buffer, tally).read()
        elif opening:
            raise StudioError(
                f"This file begins with {opening!r}; rows in JSON begin with [ or {{.",
                "Give a list of objects.",
                where=f"{buffer.file}:1",
            )
        if mark := buffer.peek():
            raise StudioError(f"There is more after the end of the rows: {mark!r}.", "Remove it.", where=buffer.where)
    except StudioError as error:
        yield buffer.unseen(error.problems[0])


def _read_list(buffer: JsonBuffer, tally: Tally) -> Iterator[RowOrProblem]:
    """The rows of a list. A broken one is a problem, and reading goes on where the next one begins."""
    buffer.take()
    buffer.mark_gap()
    while (mark := buffer.peek()) != "]":
        if not mark:
            raise StudioError(
                "The JSON is broken: the file ends inside the list.", "Fetch or save it again.", where=buffer.where
            )
        line, file = buffer.line, buffer.file
        tally.rows += 1
        try:
            value = buffer.row()
        except StudioError as error:
            yield error.problems[0]
            buffer.skip_row()
        else:
            yield _row(value, file, line)
            if not isinstance(value, dict) and buffer.peek() not in (",", "]"):
                buffer.skip_row()  # a row without its opening brace
        yield from _separator(buffer, tally)
    buffer.take()


def _separator(buffer: JsonBuffer, tally: Tally) -> Iterator[RowOrProblem]:
    """What stands between two rows: a comma, with a row behind it."""
    mark = buffer.peek()
    if mark == ",":
        buffer.take()
        buffer.mark_gap()
        if buffer.peek() == "]":
            tally.rows += 1
            yield Problem("The JSON is broken: a comma stands before ].", "Remove the last comma.", buffer.where)
    elif mark and mark != "]":
        tally.rows += 1
        yield Problem(
            f"The JSON is broken: a comma or ] is missing before {mark!r}.",
            "Fix the file, or save it again.",
            buffer.where,
        )
        buffer.skip_row()
        yield from _separator(buffer, tally)


class _Object:
    """A file that is an object: rows in a list or by name inside it, one row, or one row after another."""

    def __init__(self, buffer: JsonBuffer, tally: Tally) -> None:
        self.buffer, self.tally = buffer, tally
        self.line = buffer.line
        self.held: dict[str, Any] = {}
        self.lines: dict[str, int] = {}
        """Where each value begins."""
        self.broken: Problem | None = None
        self.by_name = self.has_list = False

    def read(self) -> Iterator[RowOrProblem]:
        buffer = self.buffer
        buffer.take()
        while buffer.peek() != "}":
            key = self._key()
            if buffer.peek() == "[" and key not in INNER_LISTS and not self.by_name and buffer.holds_rows(_is_row):
                if self.has_list:
                    raise StudioError(
                        "This object holds more than one list of rows.",
                        "Give one list a file.",
                        where=buffer.where,
                        field=key,
                    )
                self.has_list = True
                yield from _read_list(buffer, self.tally)
            else:
                yield from self._value(key)
            mark = buffer.peek()
            if mark == ",":
                buffer.take()
            elif mark != "}":
                reason = "the file ends inside an object" if not mark else f"a comma or }} is missing before {mark!r}"
                raise StudioError(f"The JSON is broken: {reason}.", "Fix the file.", where=buffer.where)
        buffer.take()
        yield from self._rest()
        while buffer.peek() == "{":  # one object after another
            line = buffer.line
            value = buffer.row()
            self.tally.rows += 1
            yield _row(value, buffer.file, line)

    def _key(self) -> str:
        buffer = self.buffer
        key = buffer.value()
        if not isinstance(key, str) or buffer.take() != ":":
            raise StudioError(
                "The JSON is broken: a key and a colon are expected.", "Fix the file.", where=buffer.where
            )
        if key in self.lines:
            raise StudioError(f"{key_twice(key)}.", "Fix this row.", where=f"{buffer.file}:{self.line}", field=key)
        return key

    def _value(self, key: str) -> Iterator[RowOrProblem]:
        """A value of the object. Values that are objects alike are rows by name from the second on."""
        line = self.lines[key] = self.buffer.line
        value = self.buffer.value()
        if not self.by_name:
            self.held[key] = value
            self.by_name = not self.has_list and len(self.held) == 2 and _are_alike(list(self.held.values()))
            if self.by_name:
                yield from self._named_rows()
            return
        self.tally.rows += 1
        if isinstance(value, dict):
            yield Row(self.buffer.file, line, value)
        else:
            yield Problem(
                f"The key '{key}' stands beside rows and is none itself.",
                "Give a list of rows.",
                f"{self.buffer.file}:{self.line}",
            )

    def _named_rows(self) -> Iterator[RowOrProblem]:
        for key, value in self.held.items():
            self.tally.rows += 1
            yield Row(self.buffer.file, self.lines[key], value)
        self.held = {}

    def _rest(self) -> Iterator[RowOrProblem]:
        """What the object held beside a list of rows is listed; without one it is a row itself, or holds one by name."""
        if self.has_list:
            self.tally.passed_over += [
                f"{self.buffer.file}: the value of '{key}', beside the rows" for key in self.held
            ]
        elif len(self.held) == 1 and all(
            key not in INNER_LISTS and isinstance(self.held[key], dict) for key in self.held
        ):
            yield from self._named_rows()
        elif self.held:
            self.tally.rows += 1
            yield Row(self.buffer.file, self.line, self.held)


def _are_alike(values: list[Any]) -> bool:
    return all(isinstance(value, dict) and value for value in values) and bool(set(values[0]) & set(values[1]))


def _is_row(first: Any) -> bool:
    """Whether the first item of a list reads like a row, and not like a turn, a tool or a piece of one."""
    if not isinstance(first, dict) or _TURN_KEYS & set(first):
        return False
    if isinstance(first.get("function"), dict) or (
        "name" in first and ("parameters" in first or "description" in first)
    ):
        return False
    return not ({"text", "label"} == set(first) or {"type", "text"} == set(first) or {"type", "value"} == set(first))


def _row(value: Any, file: str, line: int) -> RowOrProblem:
    if isinstance(value, dict):
        return Row(file, line, value)
    kind = {list: "a list", str: "text", bool: "true or false", type(None): "null"}.get(type(value), "a number")
    return Problem(f"This row is {kind}, not an object with fields.", "Each row is {...}.", f"{file}:{line}")
