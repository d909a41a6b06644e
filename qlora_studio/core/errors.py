"""What a person is told when something is wrong: the problem, where it is, and what to do about it."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass

UNWRITABLE = {
    errno.EACCES: "it may not be written",
    errno.EPERM: "it may not be written",
    errno.EROFS: "it lies on a disk that can only be read",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your share of the disk is used up",
}
"""What the system says where a file cannot be written, by error number."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a value somebody gave."""

    message: str
    """What is wrong with the value seen, as a sentence."""
    hint: str = ""
    """What to do about it, as a sentence."""
    where: str = ""
    """`file:line`, a path, or nothing."""
    field: str = ""
    """The dotted field or column, or nothing."""

    def __str__(self) -> str:
        place = ": ".join(part for part in (self.where, f"field '{self.field}'" if self.field else "") if part)
        return " ".join(part for part in (f"{place}: {self.message}" if place else self.message, self.hint) if part)


class StudioError(Exception):
    """A mistake the person can mend. Faces print it as it stands; they never print its traceback."""

    def __init__(self, message: str, hint: str = "", *, where: str = "", field: str = "") -> None:
        self.problems: tuple[Problem, ...] = (Problem(message, hint, where, field),)
        super().__init__(str(self.problems[0]))

    @classmethod
    def of(cls, problems: Iterable[Problem]) -> StudioError:
        """One error that carries several problems, in the order given."""
        listed = tuple(problems)
        error = cls(listed[0].message, listed[0].hint, where=listed[0].where, field=listed[0].field)
        error.problems = listed
        error.args = ("\n".join(map(str, listed)),)
        return error

    @property
    def message(self) -> str:
        """Everything but the hint of the first problem."""
        first = self.problems[0]
        return str(Problem(first.message, "", first.where, first.field))

    @property
    def hint(self) -> str:
        return self.problems[0].hint


def explain_unwritable(error: OSError) -> StudioError | None:
    """A refusal or a full disk as a sentence with the path; None for any other error of the system."""
    if error.errno not in UNWRITABLE:
        return None
    hint = (
        "Free some space and go on where you were."
        if error.errno in (errno.ENOSPC, errno.EDQUOT)
        else "Set QLORA_STUDIO_HOME to a folder that can be written, or change the rights of this one."
    )
    path = error.filename2 or error.filename or ""
    return StudioError(f"This cannot be written: {UNWRITABLE[error.errno]}.", hint, where=str(path))


class LawBroken(StudioError):
    """An account that the program keeps of itself does not add up: the fault is the program's, not the data's."""

    def __init__(self, message: str, *, where: str = "") -> None:
        super().__init__(
            message, "This is a fault of QLoRA Studio; nothing was changed. Please report it.", where=where
        )


class TemplateStopped(StudioError):
    """A chat template was stopped on a row: it would stop, or swell, on the next as well. No matter of that row alone."""
