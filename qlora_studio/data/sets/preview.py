"""A look at a whole file without importing it: its format, its first conversations, and every row that cannot be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qlora_studio.core.conversation import Conversation
from qlora_studio.core.dataset import FormatGuess, RowAccount
from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.data.formats.registry import Converted
from qlora_studio.data.readers.files import read_files
from qlora_studio.data.readers.rows import Tally, Unseen, shown_name
from qlora_studio.data.sets.conversion import Conversion
from qlora_studio.data.sets.writer import SHOWN_PROBLEMS
from qlora_studio.home import read_path


@dataclass(frozen=True, slots=True)
class Preview:
    """What an import would do."""

    guess: FormatGuess
    columns: tuple[str, ...]
    """The fields of the first row, for a column mapping."""
    conversations: tuple[Conversation, ...]
    problems: tuple[Problem, ...]
    """The first of them; the account counts all."""
    account: RowAccount = field(default_factory=RowAccount)
    unseen: bool = False
    """Whether part of the file could not be seen, so that no import can leave out its bad rows."""


def preview_file(
    path: Path, *, format: str = "auto", columns: Mapping[str, str] | None = None, rows: int = 20
) -> Preview:
    """Reads the whole file: the guessed format, the first conversations, the first problems and the account.

    A format that is not known is no error here: the guess is then empty, and the columns are there to be mapped.
    """
    path, tally = read_path(str(path)), Tally()
    conversion = Conversion(read_files(path, tally), tally, format, columns or {}, shown_name(path.name))
    shown: list[Conversation] = []
    problems: list[Problem] = []
    unseen: list[Problem] = []
    imported = refused = 0
    try:
        for item in conversion:
            if isinstance(item, Converted):
                imported += item.rows
                if len(shown) < rows:
                    shown.append(item.conversation)
            elif isinstance(item, Unseen):
                unseen.append(item.problem)
            else:
                refused += 1
                if len(problems) < SHOWN_PROBLEMS:
                    problems.append(item)
    except StudioError as error:
        names = tuple(map(str, conversion.first_row.values)) if conversion.first_row else ()
        guess = FormatGuess(format="", confidence=0, reason=error.message)
        return Preview(guess, names, (), tuple(problems) or error.problems, unseen=bool(unseen))
    account = RowAccount(
        seen=tally.rows,
        imported=imported,
        refused=refused,
        passed_over=tuple(tally.passed_over),
        notes=tuple(tally.notes),
    )
    names = tuple(map(str, conversion.first_row.values)) if conversion.first_row else ()
    found = (*problems, *unseen[:SHOWN_PROBLEMS])
    return Preview(conversion.guess, names, tuple(shown), found, account if unseen else account.check(), bool(unseen))
