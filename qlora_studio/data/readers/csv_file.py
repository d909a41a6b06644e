"""Comma, semicolon and tab separated tables. Text stays text: no number, date or missing value is guessed.

A quote that never closes would swallow all rows behind it. So a record is read line by line: where the lines inside
an open quote read like rows of the table, the quote is a stray one, its row is refused, and the next line is a row.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import BinaryIO

from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.data.readers.rows import MAX_LINE_BYTES, Row, RowOrProblem, Tally, Unseen
from qlora_studio.data.readers.text_file import DecodedText, line_too_long, read_lines

_SEPARATORS = (",", ";", "\t", "|")
_HEAD_LINES = 50
_ROWS_INSIDE = 20
"""So many lines inside an open quote that all read like rows mean a stray quote."""
_FEWEST_ROWS_INSIDE = 3

_Line = tuple[int, str | None]


def read_csv(stream: BinaryIO, file: str, tally: Tally, separator: str | None = None) -> Iterator[RowOrProblem]:
    """Rows of a table whose first line names the columns. A row whose length differs is a problem, not padded."""
    text = DecodedText(stream)
    lines = read_lines(text)
    head = list(islice(lines, _HEAD_LINES))
    if not head:
        return
    csv.field_size_limit(MAX_LINE_BYTES)
    shown = [line + "\n" for _, line in head if line is not None]
    table = _Table(text, file, separator or find_separator(shown), deque(head), lines)
    try:
        table.read_names()
    except StudioError as error:
        rest = sum(1 for _ in table.all_lines())
        first = error.problems[0]
        message = f"{first.message} Without it the {rest} lines behind it were not seen."
        yield Unseen(Problem(message, first.hint, first.where, first.field))
        return
    yield from table.read(tally)


@dataclass(frozen=True, slots=True)
class _Record:
    """The cells of a record, or what is wrong with it."""

    cells: list[str] = field(default_factory=list)
    problem: Problem | None = None
    ends_here: bool = False
    """Nobody can say where the next record begins."""


@dataclass
class _Table:
    """A table whose lines can be put back."""

    text: DecodedText
    file: str
    separator: str
    held: deque[_Line]
    rest: Iterator[_Line]
    names: list[str] = field(default_factory=list)

    def all_lines(self) -> Iterator[_Line]:
        return iter(self._next, None)

    def _next(self) -> _Line | None:
        return self.held.popleft() if self.held else next(self.rest, None)

    def read_names(self) -> None:
        """The names of the columns, from the first record. Raises a StudioError where it names none."""
        line = next((line for line in self.all_lines() if line[1] is None or line[1].strip()), None)
        if line is None:
            return
        record = self._record(line)
        if record.problem:
            raise StudioError.of([record.problem])
        _check_names(record.cells, f"{self.file}:{line[0]}")
        self.names = record.cells

    def read(self, tally: Tally) -> Iterator[RowOrProblem]:
        for line in self.all_lines():
            if line[1] == "":
                continue
            tally.rows += 1
            record = self._record(line)
            where = f"{self.file}:{line[0]}"
            cells, names = record.cells, self.names
            if record.problem:
                yield record.problem
                if record.ends_here:
                    rest = sum(1 for _ in self.all_lines())
                    yield Unseen(Problem(f"The {rest} lines behind the open quote were not seen.", "Close it.", where))
            elif len(cells) == len(names):
                yield Row(self.file, line[0], dict(zip(names, cells, strict=True)))
            else:
                yield Problem(
                    f"This row has {len(cells)} fields where the first line names {len(names)}.",
                    'Put text that holds separators or line ends in "quotes".',
                    where,
                    names[len(cells)] if len(cells) < len(names) else "",
                )

    def _record(self, first: _Line) -> _Record:
        """The record that begins with this line. Lines that turn out not to be of it are put back."""
        lines, size = [first], 0
        while True:
            if problem := self._unreadable(lines[-1]):
                self._put_back(lines[1:])
                return _Record(problem=problem)
            size += len(lines[-1][1] or "")
            try:
                cells = self._parse(lines) if len(lines) == 1 or '"' in (lines[-1][1] or "") else None
            except csv.Error as error:
                self._put_back(lines[1:])
                return _Record(problem=self._broken(str(error), first[0]))
            inside = lines[1:-1] if cells is not None else lines[1:]
            if cells is not None and not (len(inside) >= _FEWEST_ROWS_INSIDE and self._read_like_rows(inside)):
                return _Record(cells)
            if cells is not None or (len(inside) == _ROWS_INSIDE and self._read_like_rows(inside)):
                return self._stray(lines)
            following = self._next()
            if following is None or size > MAX_LINE_BYTES:
                lines += [following] if following is not None else []
                return self._stray(lines, sure=self._read_like_rows(inside))
            lines.append(following)

    def _stray(self, lines: list[_Line], sure: bool = True) -> _Record:
        """A quote that opens and does not close: only its own line is refused, if the others are rows."""
        self._put_back(lines[1:])
        return _Record(problem=self._broken("a quote is never closed", lines[0][0]), ends_here=not sure)

    def _put_back(self, lines: list[_Line]) -> None:
        self.held.extendleft(reversed(lines))

    def _broken(self, reason: str, line: int) -> Problem:
        return Problem(f"The table is broken: {reason}.", "Fix the quotes of this row.", f"{self.file}:{line}")

    def _parse(self, lines: list[_Line]) -> list[str] | None:
        """The cells of a record; None while a quote is open. Raises csv.Error for any other fault."""
        text = ((line or "") + "\n" for _, line in lines)
        try:
            return next(csv.reader(text, delimiter=self.separator, strict=True), [])
        except csv.Error as error:
            if "unexpected end" in str(error):
                return None
            raise

    def _read_like_rows(self, lines: list[_Line]) -> bool:
        """Whether each line alone is a row of this table; of one column any text would be."""
        try:
            return len(self.names) > 1 and all(len(self._parse([line]) or ()) == len(self.names) for line in lines)
        except csv.Error:
            return False

    def _unreadable(self, line: _Line) -> Problem | None:
        where = f"{self.file}:{line[0]}"
        if line[1] is None:
            return line_too_long(where)
        found = self.text.find_bad_byte(line[1])
        return self.text.not_text(found, where) if found else None


def _check_names(names: list[str], where: str) -> None:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise StudioError(f"Two columns are named '{twice[0]}'.", "Rename one.", where=where, field=twice[0])
    if "" in (name.strip() for name in names):
        raise StudioError("A column has no name.", "The first line must name every column.", where=where)
    if any(len(name) > 200 for name in names):
        raise StudioError(
            "The first line does not name columns: it reads like a row.", "Add a first line with names.", where=where
        )


def find_separator(lines: list[str]) -> str:
    """The separator that cuts most of the first lines into the same number of fields; a comma when in doubt."""
    shares = {separator: _share_alike(lines, separator) for separator in _SEPARATORS}
    return max(shares, key=lambda separator: shares[separator])  # of equal ones the first


def _share_alike(lines: list[str], separator: str) -> float:
    """How many of these lines, of which the last may be cut, have as many fields as the first; 0 where that is one."""
    try:
        widths = [len(cells) for cells in csv.reader(lines, delimiter=separator) if cells]
    except csv.Error:  # a quote that never closes: its cell is longer than any may be
        return 0.0
    whole = widths[:-1] or widths
    return sum(width == whole[0] for width in whole) / len(whole) if whole and whole[0] > 1 else 0.0
