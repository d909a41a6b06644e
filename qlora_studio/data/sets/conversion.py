"""The files of a source become conversations, each file by its own format, and every row is accounted for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice

from qlora_studio.core.dataset import FormatGuess
from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.data.formats.registry import ConvertedOrProblem, check_columns, convert_all, detect, find_format
from qlora_studio.data.readers.files import SourceFile
from qlora_studio.data.readers.rows import Row, RowOrProblem, Tally

_DETECTION_ROWS = 200
"""Rows of a file that decide its format."""


@dataclass
class Conversion:
    """Goes through the files of a source once, in order."""

    files: Iterator[SourceFile]
    tally: Tally
    format: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    """What the source is called in messages."""
    guesses: dict[str, FormatGuess] = field(default_factory=dict)
    """The format of each file, once it was begun."""
    first_row: Row | None = None

    def __iter__(self) -> Iterator[ConvertedOrProblem]:
        """Raises a StudioError where there is no row, and where the only file has no format that is known."""
        empty = True
        for file in self.files:
            for made in self._read(file):
                empty = False
                yield made
        if empty:
            raise StudioError("There is no row in this file.", "Give a file with at least one row.", where=self.source)

    @property
    def guess(self) -> FormatGuess:
        """The format of the first file; the reason names the others."""
        if not self.guesses:
            return FormatGuess(format="", confidence=0, reason="no row can be read")
        first = next(iter(self.guesses.values()))
        others = {f"{file} is {guess.format}" for file, guess in self.guesses.items() if guess.format != first.format}
        if not others:
            return first
        return first.model_copy(update={"reason": f"{first.reason}; {', '.join(sorted(others))}"})

    def _read(self, file: SourceFile) -> Iterator[ConvertedOrProblem]:
        head = list(islice(file.rows, _DETECTION_ROWS))
        rows = [item for item in head if isinstance(item, Row)]
        if not head and not file.alone:
            self.tally.passed_over.append(f"{file.name}: empty")
        if not rows:
            yield from convert_all(chain(head, file.rows), find_format("text"), {})
            return
        self.first_row = self.first_row or rows[0]
        try:
            guess = self._detect(rows)
        except StudioError as error:
            if file.alone:
                raise
            yield from self._unknown(file, head, error)
            return
        self.guesses[file.name] = guess
        entry = find_format(guess.format)
        items: Iterator[RowOrProblem] = chain(head, file.rows)
        if entry.join:  # threads may go on in the next file
            items = chain(items, (item for other in self.files for item in other.rows))
        yield from convert_all(items, entry, self.columns)

    def _detect(self, rows: list[Row]) -> FormatGuess:
        if self.format == "auto":
            guess = detect(rows, self.columns)
        else:
            guess = FormatGuess(format=find_format(self.format).name, confidence=1.0, reason="chosen by hand")
        check_columns(find_format(guess.format), self.columns, rows[0])
        return guess

    def _unknown(self, file: SourceFile, head: list[RowOrProblem], error: StudioError) -> Iterator[Problem]:
        """A file among others whose rows have no format that is known: one object describes, more are refused rows."""
        following = next(file.rows, None)
        if len(head) == 1 and following is None:
            self.tally.rows -= 1
            self.tally.passed_over.append(f"{file.name}: one object that is no row")
            return
        first = error.problems[0]
        for item in chain(head, [following] if following is not None else [], file.rows):
            if isinstance(item, Row):
                yield Problem(first.message, first.hint, f"{item.file}:{item.line}", first.field)
            elif isinstance(item, Problem):
                yield item
