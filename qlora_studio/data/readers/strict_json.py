"""JSON read strictly: what Python would read and change on the way is refused, in words."""

from __future__ import annotations

import json
import re
from typing import Any

from qlora_studio.core.errors import StudioError
from qlora_studio.data.readers.rows import MAX_DEPTH

SPACE = re.compile(r"[ \t\n\r]*")
_PYTHON_DICT = re.compile(r"^\s*\{\s*'")
_MARKS = re.compile(r'\\.|["\[\]{}]', re.DOTALL)


class NotStrict(ValueError):
    """JSON that Python would read and that would change on the way."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        raise key_twice(next(name for name in names if names.count(name) > 1))
    return values


def key_twice(name: str) -> NotStrict:
    return NotStrict(f"The key '{name}' stands twice in one object")


def _constant(name: str) -> Any:
    raise NotStrict(f"{name} is not JSON")


DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant)


def parse_json(text: str, where: str = "", field: str = "") -> Any:
    """One JSON value. Raises a StudioError that says what is wrong with it and where."""
    try:
        check_depth(text)
        value, end = DECODER.raw_decode(text, skip_space(text, 0))
        rest = skip_space(text, end)
        if rest < len(text):
            raise NotStrict(f"There is more after the end of the row, at column {rest + 1}")
        check_characters(text)
    except (ValueError, RecursionError) as error:
        raise broken(error, text, where, field=field) from None
    return value


def skip_space(text: str, place: int) -> int:
    match = SPACE.match(text, place)
    assert match
    return match.end()


def check_depth(text: str) -> None:
    """Raises where brackets nest deeper than the bound; counts only where that could be."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth, inside = 0, False
    for match in _MARKS.finditer(text):
        mark = match[0]
        if mark == '"':
            inside = not inside
        elif not inside and mark in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise NotStrict(f"This row is nested deeper than {MAX_DEPTH} levels")
        elif not inside and mark in "]}":
            depth -= 1


def find_balanced_end(text: str, start: int, stop: int) -> int:
    """Where the brackets that open at `start` have all closed; -1 where they have not before `stop`."""
    depth, inside = 0, False
    for match in _MARKS.finditer(text, start, stop):
        mark = match[0]
        if mark == '"':
            inside = not inside
        elif not inside and mark in "[{":
            depth += 1
        elif not inside and mark in "]}":
            depth -= 1
            if depth <= 0:
                return match.end() if depth == 0 else match.start()
    return -1


def check_characters(text: str) -> None:
    """Raises for half a surrogate pair, which is no character and cannot be written again."""
    if "\\ud" in text or "\\uD" in text:
        for match in re.finditer(r"\\\\|\\u([dD][89abAB]..)(\\u[dD][c-fC-F]..)?|\\u([dD][c-fC-F]..)", text):
            if match[0] != "\\\\" and not match[2]:
                raise NotStrict(f"{match[0]} is half of a character")


def broken(error: Exception, text: str, where: str, start: int = 0, field: str = "") -> StudioError:
    """The sentence for a JSON error of the row that begins at `start`, at the line `where` names."""
    if isinstance(error, RecursionError):
        return StudioError(
            f"This row is nested deeper than {MAX_DEPTH} levels.", "Flatten it.", where=where, field=field
        )
    if isinstance(error, NotStrict):
        return StudioError(f"{error}.", "Fix this row.", where=where, field=field)
    if _PYTHON_DICT.match(text[start : start + 100]):
        return StudioError(
            "This is a Python dictionary, not JSON: keys stand in single quotes.",
            "Write it with json.dumps.",
            where=where,
            field=field,
        )
    if isinstance(error, json.JSONDecodeError):
        file, _, line = where.rpartition(":")
        if not field and line.isdigit():
            where = f"{file}:{int(line) + text.count(chr(10), start, error.pos)}"
        reason = error.msg[:1].lower() + error.msg[1:]
        return StudioError(
            f"The JSON is broken at column {error.colno}: {reason}.", "Fix this row.", where=where, field=field
        )
    return StudioError(f"A number here is too long to read: {error}.", "Write it as text.", where=where, field=field)
