"""One row as a conversation of a named format, or as the sentence that refuses it."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_studio.core.conversation import Conversation, Source, Turn
from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.data.formats.fields import Fields
from qlora_studio.data.formats.registry import convert, find_format, recognise
from qlora_studio.data.readers.rows import Row

AT = Source("rows.jsonl", 3)
U, A, S, T = "user", "assistant", "system", "tool"


def turns_of(*turns: tuple[Any, str]) -> tuple[Turn, ...]:
    return tuple(Turn(role, content) for role, content in turns)


def read(values: dict[str, Any], format: str = "", columns: dict[str, str] | None = None) -> Conversation:
    """The whole conversation; of the format it is recognised as where none is named."""
    row = Row(AT.file, AT.line, values)
    return convert(row, find_format(format or recognise(row, columns or {})[0]), columns or {})


def refused(values: dict[str, Any], format: str, columns: dict[str, str] | None = None) -> Problem:
    """What is wrong with this row as one of this format."""
    with pytest.raises(StudioError) as caught:
        find_format(format).convert(Fields(Row(AT.file, AT.line, values), columns or {}))
    (problem,) = caught.value.problems
    assert problem.where == str(AT)
    return problem


def reason(values: dict[str, Any], format: str, columns: dict[str, str] | None = None) -> str:
    """Why this row has this format; empty where it has not."""
    return find_format(format).fits(Fields(Row(AT.file, AT.line, values), columns or {}))
