"""The imported sets of the home folder: listed, read one side at a time, removed."""

from __future__ import annotations

import shutil
from array import array
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from qlora_studio.core.conversation import Conversation
from qlora_studio.core.dataset import DatasetReport
from qlora_studio.core.errors import StudioError
from qlora_studio.data.sets.canonical import (
    CONVERSATIONS,
    EVALUATION,
    PROMPTS,
    REPORT,
    StoredRow,
    hashes_below,
    read_conversations,
    read_report,
    read_rows,
)
from qlora_studio.data.sets.identity import slug
from qlora_studio.data.sets.sides import prompt_hash

Split = Literal["train", "eval", "all"]


def list_datasets(folder: Path) -> list[DatasetReport]:
    """The reports of all complete sets, by name."""
    if not folder.is_dir():
        return []
    found = []
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and (path / REPORT).exists():
            with suppress(StudioError):  # a damaged set must not hide the others; opening it says what is wrong
                found.append(read_report(path))
    return found


def find_dataset(folder: Path, name: str) -> Path:
    """The folder of a set, by its name or its title. Raises a StudioError that lists the sets there are."""
    place = folder / name
    if (name and Path(name).name != name) or "\0" in name or not (place / REPORT).exists():
        place = folder / slug(name)
    if not name or not (place / REPORT).exists():
        there = ", ".join(report.name for report in list_datasets(folder)) or "none yet"
        raise StudioError(f"There is no data set '{name}'.", f"There are: {there}.", field="data.sources")
    return place


def load_conversations(
    folder: Path, name: str, split: Split = "train", eval_share: float = 0.05
) -> Iterator[Conversation]:
    """The conversations of one side of a set, one at a time. Raises what `load_rows` raises."""
    return (row.read() for row in load_rows(folder, name, split, eval_share))


def load_rows(folder: Path, name: str, split: Split = "train", eval_share: float = 0.05) -> Iterator[StoredRow]:
    """The rows of one side of a set, one at a time, unparsed. Raises a StudioError where there is no such set.

    Where the set brings no evaluation rows of its own, the prompts with the smallest hashes are held out:
    `eval_share` of the distinct prompts, at least one, at most half, none below three prompts.
    """
    return _read(find_dataset(folder, name), name, split, eval_share)


def count_rows(folder: Path, name: str, split: Split, eval_share: float) -> int:
    """How many conversations one side of a set has, without reading them."""
    place = find_dataset(folder, name)
    report = read_report(place)
    if (place / EVALUATION).exists():
        return {"train": report.rows, "eval": report.eval_rows, "all": report.rows + report.eval_rows}[split]
    hashes = _hashes(place)
    bound = hashes_below(hashes, eval_share)
    held_out = sum(mark < bound for mark in hashes)
    return {"train": len(hashes) - held_out, "eval": held_out, "all": len(hashes)}[split]


def eval_prompts(folder: Path, name: str, eval_share: float = 0.05) -> frozenset[int]:
    """The hashes of the prompts that a set holds out."""
    place = find_dataset(folder, name)
    if (place / EVALUATION).exists():
        return frozenset(map(prompt_hash, read_conversations(place / EVALUATION, name)))
    hashes = _hashes(place)
    bound = hashes_below(hashes, eval_share)
    return frozenset(mark for mark in hashes if mark < bound)


def remove_dataset(folder: Path, name: str) -> None:
    """Deletes a set. Raises a StudioError where there is no such set."""
    place = find_dataset(folder, name)
    away = place.with_name(f".removed-{name}")
    shutil.rmtree(away, ignore_errors=True)
    place.replace(away)
    shutil.rmtree(away, ignore_errors=True)


def _hashes(place: Path) -> array[int]:
    """The hash of each row's first prompt; made once where an older version has written none."""
    try:
        if not (place / PROMPTS).exists():
            made = array("Q", (prompt_hash(row) for row in read_conversations(place / CONVERSATIONS, place.name)))
            stage = place / f"{PROMPTS}.part"
            stage.write_bytes(made.tobytes())
            stage.replace(place / PROMPTS)
        return array("Q", (place / PROMPTS).read_bytes())
    except (OSError, ValueError):
        raise StudioError(f"The data set '{place.name}' is damaged.", "Import it again.", where=PROMPTS) from None


def _read(place: Path, name: str, split: Split, eval_share: float) -> Iterator[StoredRow]:
    if (place / EVALUATION).exists():
        if split != "eval":
            yield from read_rows(place / CONVERSATIONS, name)
        if split != "train":
            yield from read_rows(place / EVALUATION, name)
        return
    hashes = _hashes(place)
    bound = hashes_below(hashes, eval_share)
    if len(hashes) != read_report(place).rows:
        raise StudioError(
            f"The data set '{name}' is damaged: rows are missing.", "Import it again.", where=CONVERSATIONS
        )
    wanted = [split == "all" or (mark < bound) == (split == "eval") for mark in hashes]
    yield from read_rows(place / CONVERSATIONS, name, wanted)
