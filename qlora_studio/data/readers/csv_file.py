"""Comma, semicolon and tab separated tables. Text stays text: no number, date or missing value is guessed."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import chain, islice
from typing import BinaryIO

from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.data.readers.rows import MAX_LINE_BYTES, Row, RowOrProblem
from qlora_studio.data.readers.text_file import read_lines

_SEPARATORS = (",", ";", "\t", "|")
_LOOKED_AT = 50


def read_csv(stream: BinaryIO, file: str, separator: str | None = None) -> Iterator[RowOrProblem]:
    """Rows of a table whose first line names the columns. A row whose length differs is a problem, not padded."""
    try:
        yield from _read(stream, file, separator)
    except StudioError as error:
        yield error.problems[0]


def _read(stream: BinaryIO, file: str, separator: str | None) -> Iterator[RowOrProblem]:
    lines = (line + "\n" for _, line in read_lines(stream, file))
    head = list(islice(lines, _LOOKED_AT))
    if not head:
        return
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(chain(head, lines), delimiter=separator or find_separator(head), strict=True)
    begins = 1
    try:
        names = next(reader)
        _check_names(names, file)
        while True:
            begins = reader.line_num + 1
            cells = next(reader, None)
            if cells is None:
                return
            if len(cells) == len(names):
                yield Row(file, begins, dict(zip(names, cells, strict=True)))
            elif cells:
                yield Problem(
                    f"This row has {len(cells)} fields where the first line names {len(names)}.",
                    'Put text that holds separators or line ends in "quotes".',
                    f"{file}:{begins}",
                    names[len(cells)] if len(cells) < len(names) else "",
                )
    except csv.Error as error:
        said = "a quote is never closed" if "unexpected end" in str(error) else str(error)
        yield Problem(f"The table is broken: {said}.", "Mend the quotes of this row.", f"{file}:{begins}")


def _check_names(names: list[str], file: str) -> None:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise StudioError(f"Two columns are named '{twice[0]}'.", "Rename one.", where=f"{file}:1", field=twice[0])
    if "" in (name.strip() for name in names):
        raise StudioError("A column has no name.", "The first line must name every column.", where=f"{file}:1")
    if any(len(name) > 200 for name in names):
        raise StudioError(
            "The first line does not name columns: it reads like a row.",
            "Add a first line with names.",
            where=f"{file}:1",
        )


def find_separator(lines: list[str]) -> str:
    """The separator that cuts most of the first lines into the same number of fields; a comma when in doubt."""
    best = (0.0, ",")
    for separator in _SEPARATORS:
        widths = [len(cells) for cells in csv.reader(lines, delimiter=separator) if cells]
        if widths and widths[0] > 1:
            agree = sum(width == widths[0] for width in widths[:-1] or widths) / len(widths[:-1] or widths)
            if agree > best[0] + 1e-9:
                best = (agree, separator)
    return best[1]
