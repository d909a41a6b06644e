"""The fields of one row, taken one by one: each must have the right kind, and what is left over is kept and listed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qlora_studio.core.conversation import Source
from qlora_studio.core.errors import StudioError
from qlora_studio.data.readers.rows import Row
from qlora_studio.data.readers.strict_json import parse_json


class Fields:
    """One row under a column map, `{part: your column}`."""

    def __init__(self, row: Row, columns: Mapping[str, str]) -> None:
        self.values, self.columns = _with_paths(row.values, columns), columns
        self.source = Source(row.file, row.line)
        self.taken: set[str] = set()
        self.leftover: dict[str, Any] = {}
        """What the inner parts did not use, by place: `messages[0].id`."""

    def column(self, part: str) -> str:
        return self.columns.get(part, part)

    def has(self, part: str) -> bool:
        """Whether the row holds this part and it is not null."""
        return self.values.get(self.column(part)) is not None

    def first(self, parts: Sequence[str]) -> str | None:
        """The first of these parts that the row holds."""
        return next((part for part in parts if self.has(part)), None)

    def take(self, part: str) -> Any:
        """The value of a part, of any kind; None where there is none."""
        column = self.column(part)
        self.taken.add(column)
        return self.values.get(column)

    def text(self, part: str) -> str:
        """Text that must be there. An empty text is let through: lint finds it."""
        value = self.take(part)
        if isinstance(value, str):
            return value
        column = self.column(part)
        if column not in self.values:
            raise self.wrong(
                "This row has no such field.", f"It has: {', '.join(map(str, self.values)) or 'none'}.", column
            )
        raise self.wrong(f"This field holds {kind_of(value)} where text is needed.", "Fix or remove this row.", column)

    def answer(self, part: str) -> str:
        """Text that must be there, or a number as JSON writes it: answers of sums are often numbers."""
        value = self.values.get(self.column(part))
        if isinstance(value, int | float) and not isinstance(value, bool):
            self.take(part)
            return json.dumps(value)
        return self.text(part)

    def optional_text(self, part: str) -> str:
        """Text, or nothing where the field is missing, null or empty."""
        return self.text(part) if self.has(part) else self.take(part) or ""

    def items(self, part: str) -> list[Any]:
        """A list, also where it is written as JSON text."""
        value = self.take(part)
        column = self.column(part)
        if isinstance(value, str) and value.lstrip().startswith("["):
            value = self.json(value, column, "This field looks like a JSON list and is none")
        if not isinstance(value, list):
            raise self.wrong(
                f"This field holds {kind_of(value)} where a list is needed.", "Fix or remove this row.", column
            )
        return value

    def json(self, text: str, place: str, what: str) -> Any:
        """The value of JSON that stands inside text, read as strictly as the file itself."""
        try:
            return parse_json(text)
        except StudioError as error:
            message = error.problems[0].message
            raise self.wrong(f"{what}: {message[:1].lower()}{message[1:]}", "Fix the JSON.", place) from None

    def rest(self) -> dict[str, Any]:
        """What no part has taken, of the row and of its inner parts."""
        return {name: value for name, value in self.values.items() if name not in self.taken} | self.leftover

    def wrong(self, message: str, hint: str = "", field: str = "") -> StudioError:
        """An error that names file, line and field."""
        return StudioError(message, hint, where=str(self.source), field=field)


def _with_paths(values: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row's values, and those inside it that a column mapping names by a path such as `translation.en`."""
    inner: dict[str, Any] = {}
    for column in columns.values():
        value: Any = None if column in values else values
        for name in column.split(".") if "." in column else ():
            value = value.get(name) if isinstance(value, dict) else None
        if "." in column and value is not None:
            inner[column] = value
    return {**values, **inner} if inner else values


def kind_of(value: Any) -> str:
    """A value's kind in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = {str: "text", list: "a list", dict: "an object", int: f"the number {value}", float: f"the number {value}"}
    return names.get(type(value), type(value).__name__)
