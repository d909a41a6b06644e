"""A sweep as people write it: settings and the values each shall take."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from qlora_studio.core.errors import StudioError

MIX = "data.sources"


def parse_sweep(lines: Iterable[str]) -> dict[str, list[Any]]:
    """`lora.rank=8,16` lines as values by dotted name; a value is JSON where it can be, else text.

    Mixtures of data sets are written `data.sources=mine:3+other:1, mine+other`, each set with its weight, 1 where none is
    given. Raises a StudioError for a line that names no setting or no value, and for a setting that is named twice.
    """
    values: dict[str, list[Any]] = {}
    for line in lines:
        field, sign, text = line.partition("=")
        field, parts = field.strip(), [part.strip() for part in text.split(",") if part.strip()]
        if not sign or "." not in field or not parts:
            raise StudioError(f"'{line}' is no sweep.", "Write a setting and its values, such as lora.rank=8,16.")
        if field in values:
            raise StudioError(f"'{field}' is named twice.", "Give all its values in one line.")
        read = _mix if field == MIX else _value
        values[field] = [read(part) for part in dict.fromkeys(parts)]
    return values


def describe_value(value: Any) -> str:
    """A value as it is written in a sweep."""
    if isinstance(value, list | tuple) and all(isinstance(one, dict) and "name" in one for one in value):
        return "+".join(f"{one['name']}:{one.get('weight', 1.0):g}" for one in value)
    return str(value)


def _mix(text: str) -> list[dict[str, Any]]:
    """`mine:3+other` as sources with weights. Raises a StudioError for a weight that is none."""
    sources = []
    for part in text.split("+"):
        name, sign, weight = (piece.strip() for piece in part.partition(":"))
        try:
            number = float(weight) if sign else 1.0
        except ValueError:
            number = 0.0
        if not name or not 0 < number < math.inf:
            raise StudioError(
                f"'{text}' is no mixture of sets.", "Write name:weight+name:weight, such as mine:3+other:1."
            )
        sources.append({"name": name, "weight": number})
    return sources


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
