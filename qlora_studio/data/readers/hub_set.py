"""A data set of the Hugging Face hub becomes rows, at a pinned revision."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from qlora_studio.core.errors import StudioError
from qlora_studio.data.readers.rows import Row, RowOrProblem, Tally
from qlora_studio.data.readers.table_child import plain_value
from qlora_studio.hub import find_token, pin_dataset


@dataclass(frozen=True, slots=True)
class HubSet:
    """A data set on the hub. `revision` is a commit once it is pinned."""

    id: str
    subset: str | None = None
    split: str = "train"
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.id}{f'/{self.subset}' if self.subset else ''}:{self.split}"


def pin(wanted: HubSet) -> HubSet:
    """The same set with its branch or tag resolved to a commit. Raises a StudioError where that fails."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+|[\w.-]+", wanted.id):
        raise StudioError(f"'{wanted.id}' is not the id of a hub data set.", "It looks like owner/name.")
    return HubSet(wanted.id, wanted.subset, wanted.split, pin_dataset(wanted.id, wanted.revision))


def read_hub(pinned: HubSet, tally: Tally) -> Iterator[RowOrProblem]:
    """Rows of a pinned set, streamed; the line of a row is its number, from 1."""
    from datasets import load_dataset

    try:
        rows = load_dataset(
            pinned.id,
            pinned.subset,
            split=pinned.split,
            revision=pinned.revision,
            streaming=True,
            token=find_token() or False,
        )
        for number, values in enumerate(rows, 1):
            tally.rows += 1
            yield Row(str(pinned), number, {name: plain_value(value) for name, value in values.items()})
    except Exception as error:  # the library raises from bare Exception to those of every file format it reads
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise StudioError(
            f"The data set cannot be read: {reason[:300]}.", "Check subset and split on its page.", where=str(pinned)
        ) from None
