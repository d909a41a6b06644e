"""A sweep as people write it: settings and the values each shall take."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from qlora_studio.core.errors import StudioError


def parse_sweep(lines: Iterable[str]) -> dict[str, list[Any]]:
    """`lora.rank=8,16` lines as values by dotted name; a value is JSON where it can be, else text.

    Raises a StudioError for a line that names no setting or no value, and for a setting that is named twice.
    """
    values: dict[str, list[Any]] = {}
    for line in lines:
        field, sign, text = line.partition("=")
        field, parts = field.strip(), [part.strip() for part in text.split(",") if part.strip()]
        if not sign or "." not in field or not parts:
            raise StudioError(f"'{line}' is no sweep.", "Write a setting and its values, such as lora.rank=8,16.")
        if field in values:
            raise StudioError(f"'{field}' is named twice.", "Give all its values in one line.")
        values[field] = [_value(part) for part in dict.fromkeys(parts)]
    return values


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
