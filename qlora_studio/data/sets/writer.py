"""Conversations being written into a set, with the account of every row they came from."""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from qlora_studio.core.dataset import RowAccount
from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.data.formats.registry import Converted, ConvertedOrProblem
from qlora_studio.data.readers.rows import Tally, Unseen
from qlora_studio.data.sets.canonical import to_line
from qlora_studio.data.sets.sides import prompt_hash

SHOWN_PROBLEMS = 10
"""Problems that are shown; all are counted, and all stand in the list of refused rows."""


class SetWriter:
    """One file of conversations being written. `held_out` are the prompts of the evaluation rows."""

    def __init__(self, held_out: frozenset[int] = frozenset()) -> None:
        self.held_out = held_out
        self.hashes = array("Q")
        self.digest = hashlib.sha256()
        self.problems: list[Problem] = []
        self.unseen: list[Problem] = []
        self.extra: dict[str, int] = {}
        self.imported = self.refused = self.dropped = self.overlap = 0

    def write(self, items: Iterable[ConvertedOrProblem], path: Path, refused: TextIO, drop_overlap: bool) -> None:
        """Writes the conversations to `path` and every row that is none, with its place, to `refused`."""
        with path.open("w", encoding="utf-8", newline="\n") as out:
            for item in items:
                if isinstance(item, Converted):
                    self._keep(item, out, drop_overlap)
                elif isinstance(item, Unseen):
                    self.unseen.append(item.problem)
                else:
                    self._refuse(item, refused)

    def _keep(self, item: Converted, out: TextIO, drop_overlap: bool) -> None:
        conversation = item.conversation
        mark = prompt_hash(conversation)
        if mark in self.held_out:
            self.overlap += 1
            if drop_overlap:
                self.dropped += item.rows
                return
        self.imported += item.rows
        line = to_line(conversation) + "\n"
        out.write(line)
        self.digest.update(line.encode())
        self.hashes.append(mark)
        for field in conversation.extra:
            shown = re.sub(r"\[\d+\]", "[]", field)
            self.extra[shown] = self.extra.get(shown, 0) + 1

    def _refuse(self, problem: Problem, refused: TextIO) -> None:
        self.refused += 1
        if len(self.problems) < SHOWN_PROBLEMS:
            self.problems.append(problem)
        record = {"where": problem.where, "field": problem.field, "message": problem.message}
        refused.write(json.dumps(record, ensure_ascii=False) + "\n")

    def account(self, tally: Tally, file: str) -> RowAccount:
        """The account of this file. Raises LawBroken where the readers met other rows than these."""
        return RowAccount(
            seen=tally.rows,
            imported=self.imported,
            refused=self.refused,
            dropped=self.dropped,
            passed_over=tuple(tally.passed_over),
            notes=tuple(tally.notes),
        ).check(file)

    def check(self, skip_bad: bool, file: str) -> None:
        """Raises for bad rows that the person did not choose to leave out, for what nobody saw, and for an empty set."""
        if self.unseen:
            message = (
                f"{self.imported + self.refused} rows of it were seen; the rest was not, so it cannot be left out."
            )
            last = Problem(message, "Fix the file; bad rows can be left out only where each is known.", file)
            raise StudioError.of([*self.problems, *self.unseen[:SHOWN_PROBLEMS], last])
        if self.refused and not skip_bad:
            message = f"{self.refused} row{'s' if self.refused != 1 else ''} cannot be imported"
            message += f"; the first {len(self.problems)} are shown." if self.refused > len(self.problems) else "."
            last = Problem(message, "Fix them, or choose to skip bad rows (on the command line, --skip-bad).", file)
            raise StudioError.of([*self.problems, last])
        if not self.hashes:
            raise StudioError.of(
                [*self.problems, Problem("No row of this file can be used.", "Look at the file.", file)]
            )
