"""A file becomes a canonical set: read, detect, convert, write whole, report. The same content twice is one set."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from qlora_studio.core.conversation import Conversation
from qlora_studio.core.dataset import DatasetReport, FormatGuess
from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.data.formats.registry import check_columns, conversations, detect, find_format
from qlora_studio.data.readers.files import read_rows
from qlora_studio.data.readers.hub_set import HubSet, pin, read_hub
from qlora_studio.data.readers.rows import Row, RowOrProblem
from qlora_studio.data.sets.canonical import (
    CONVERSATIONS,
    EVALUATION,
    PROMPTS,
    REPORT,
    prompt_hash,
    read_report,
    swap_in,
    to_line,
)
from qlora_studio.data.sets.identity import hash_path, size_of, slug
from qlora_studio.data.sets.store import list_datasets, load_conversations

__all__ = ["import_file", "import_hub", "list_datasets", "load_conversations", "preview_file", "slug"]

_LOOKED_AT = 200
"""Rows that decide the format."""
_SHOWN = 10
"""Problems that are shown; all are counted."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the person chose for an import."""

    format: str = "auto"
    columns: Mapping[str, str] | None = None
    skip_bad: bool = False
    drop_overlap: bool = False

    def as_json(self, evaluation: str = "") -> dict[str, Any]:
        columns = dict(sorted((self.columns or {}).items()))
        return {
            "format": self.format,
            "columns": columns,
            "skip_bad": self.skip_bad,
            "drop_overlap": self.drop_overlap,
            "evaluation": evaluation,
        }


@dataclass(frozen=True, slots=True)
class Preview:
    """A first look at a file, without importing it."""

    guess: FormatGuess
    columns: tuple[str, ...]
    """The fields of the first row, for a column map."""
    conversations: tuple[Conversation, ...]
    problems: tuple[Problem, ...]


def import_file(
    path: Path,
    datasets_folder: Path,
    *,
    name: str = "",
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    eval_path: Path | None = None,
    drop_overlap: bool = False,
    replace: bool = False,
) -> DatasetReport:
    """Imports a file or folder into `<datasets_folder>/<name>/`, or finds it there unchanged.

    `eval_path` gives the evaluation rows instead of a split by hash; prompts that stand in both are counted, and
    `drop_overlap` takes them out of the training rows. Raises a StudioError that carries the first problems and
    counts all of them; then nothing is written. With `skip_bad` bad rows are left out and counted instead.
    """
    asked = _Asked(format, columns, skip_bad, drop_overlap)
    sha256 = hash_path(path)
    identity = {"source_file": path.name, "source_sha256": sha256, "source_bytes": size_of(path)}
    evaluation = hash_path(eval_path) if eval_path else ""
    rows = read_rows(path)
    eval_rows = read_rows(eval_path) if eval_path else None
    return _import(
        rows, eval_rows, datasets_folder, name or slug(path.stem), bool(name), identity, asked, evaluation, replace
    )


def import_hub(
    wanted: HubSet,
    datasets_folder: Path,
    *,
    name: str = "",
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    skip_bad: bool = False,
) -> DatasetReport:
    """Imports a data set of the hub at a pinned commit, which the report records."""
    pinned = pin(wanted)
    key = hashlib.sha256(f"{pinned}@{pinned.revision}".encode()).hexdigest()
    identity = {"source_file": f"{pinned}@{pinned.revision}", "source_sha256": key, "source_bytes": 0}
    asked = _Asked(format, columns, skip_bad)
    made = name or slug(pinned.id.rpartition("/")[2])
    return _import(read_hub(pinned), None, datasets_folder, made, bool(name), identity, asked, "", False)


def preview_file(
    path: Path, *, format: str = "auto", columns: Mapping[str, str] | None = None, rows: int = 20
) -> Preview:
    """The guessed format, the first conversations and the problems among them.

    A format that is not known is no error here: the guess is then empty, and the columns are there to be mapped.
    """
    head = list(islice(read_rows(path), max(rows, _LOOKED_AT)))
    found = [item for item in head if isinstance(item, Row)]
    names = tuple(map(str, found[0].values)) if found else ()
    broken = tuple(item for item in head if isinstance(item, Problem))
    try:
        guess, items = _detected(iter(head), format, columns or {}, path.name)
    except StudioError as error:
        return Preview(FormatGuess(format="", confidence=0, reason=error.message), names, (), broken or error.problems)
    made = list(islice(conversations(items, find_format(guess.format), columns or {}), rows))
    return Preview(
        guess,
        names,
        tuple(item for item in made if isinstance(item, Conversation)),
        tuple(item for item in made if isinstance(item, Problem)),
    )


def _import(
    rows: Iterator[RowOrProblem],
    eval_rows: Iterator[RowOrProblem] | None,
    folder: Path,
    name: str,
    name_is_given: bool,
    identity: Mapping[str, Any],
    asked: _Asked,
    evaluation: str,
    replace: bool,
) -> DatasetReport:
    details = {"asked": asked.as_json(evaluation)}
    name, known = _place(folder, name, name_is_given, identity["source_sha256"], details, replace)
    if known:
        return known.model_copy(update={"unchanged": True})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".import-", dir=folder))
    except OSError as error:
        raise StudioError(
            f"Nothing can be written here: {error.strerror}.", "Choose another home folder.", where=str(folder)
        ) from None
    try:
        report = _write(rows, eval_rows, stage, asked, str(identity["source_file"]))
        report = report.model_copy(update={**identity, "name": name, "details": {**report.details, **details}})
        (stage / REPORT).write_text(report.model_dump_json(indent=2), encoding="utf-8")
        swap_in(stage, folder / name)
    except OSError as error:
        raise StudioError(
            f"The data set cannot be written: {error.strerror or error}.", "Make room on the disk.", where=str(folder)
        ) from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return report


def _place(
    folder: Path, name: str, name_is_given: bool, sha256: str, details: Mapping[str, Any], replace: bool
) -> tuple[str, DatasetReport | None]:
    """The name to write under, and the report where the same import stands there already."""
    if slug(name) != name:
        raise StudioError(f"'{name}' cannot be the name of a data set.", f"'{slug(name)}' can.", field="name")
    for made in (name, f"{name}-{sha256[:8]}"):
        if not (folder / made / REPORT).exists():
            return made, None
        try:
            there = read_report(folder / made)
        except StudioError:
            return made, None  # a damaged set is written anew
        if there.source_sha256 == sha256:
            same = there.details.get("asked") == details["asked"]
            return made, there if same else None
        if name_is_given and replace:
            return made, None
        if name_is_given:
            raise StudioError(
                f"There is already a data set '{name}' with other content.",
                "Choose another name, or replace it.",
                field="name",
            )
    raise StudioError(f"There are other data sets named '{name}'.", "Choose a name.", field="name")


def _detected(
    items: Iterator[RowOrProblem], format: str, columns: Mapping[str, str], file: str
) -> tuple[FormatGuess, Iterator[RowOrProblem]]:
    """The format, from the first rows, and all items again."""
    head = list(islice(items, _LOOKED_AT))
    rows = [item for item in head if isinstance(item, Row)]
    if not head:
        raise StudioError("There is no row in this file.", "Give a file with at least one row.", where=file)
    if not rows:
        raise StudioError.of([item for item in head if isinstance(item, Problem)][:_SHOWN])
    guess = detect(rows, columns) if format == "auto" else None
    entry = find_format(guess.format if guess else format)
    check_columns(entry, columns, rows[0])
    return guess or FormatGuess(format=entry.name, confidence=1.0, reason="chosen by hand"), chain(head, items)


class _Side:
    """One file of conversations being written, with what was found on the way."""

    def __init__(self, skip: frozenset[int] = frozenset()) -> None:
        self.skip = skip
        self.hashes = array("Q")
        self.digest = hashlib.sha256()
        self.problems: list[Problem] = []
        self.bad = self.overlap = 0
        self.extra: dict[str, int] = {}

    def write(self, items: Iterable[Conversation | Problem], path: Path, drop_overlap: bool) -> None:
        with path.open("w", encoding="utf-8", newline="\n") as out:
            for item in items:
                if isinstance(item, Problem):
                    self._refuse(item)
                    continue
                mark = prompt_hash(item)
                if mark in self.skip:
                    self.overlap += 1
                    if drop_overlap:
                        continue
                line = to_line(item) + "\n"
                out.write(line)
                self.digest.update(line.encode())
                self.hashes.append(mark)
                for field in item.extra:
                    shown = re.sub(r"\[\d+\]", "[]", field)
                    self.extra[shown] = self.extra.get(shown, 0) + 1

    def _refuse(self, problem: Problem) -> None:
        self.bad += 1
        if len(self.problems) < _SHOWN:
            self.problems.append(problem)

    def check(self, skip_bad: bool, file: str) -> None:
        """Raises for bad rows that the person did not choose to skip, and where nothing is left."""
        if self.bad and not skip_bad:
            said = f"{self.bad} row{'s' if self.bad != 1 else ''} cannot be imported"
            said += f"; the first {len(self.problems)} are shown." if self.bad > len(self.problems) else "."
            last = Problem(said, "Mend them, or choose to skip bad rows (--skip-bad).", file)
            raise StudioError.of([*self.problems, last])
        if not self.hashes:
            raise StudioError.of(
                [*self.problems, Problem("No row of this file can be used.", "Look at the file.", file)]
            )


def _write(
    rows: Iterator[RowOrProblem], eval_rows: Iterator[RowOrProblem] | None, stage: Path, asked: _Asked, file: str
) -> DatasetReport:
    columns = asked.columns or {}
    held_out = _Side()
    if eval_rows is not None:
        guess, items = _detected(eval_rows, asked.format, columns, file)
        held_out.write(conversations(items, find_format(guess.format), columns), stage / EVALUATION, False)
        held_out.check(asked.skip_bad, f"{file} (evaluation)")
    guess, items = _detected(rows, asked.format, columns, file)
    side = _Side(frozenset(held_out.hashes))
    side.write(conversations(items, find_format(guess.format), columns), stage / CONVERSATIONS, asked.drop_overlap)
    side.check(asked.skip_bad, file)
    (stage / PROMPTS).write_bytes(side.hashes.tobytes())
    side.digest.update(held_out.digest.digest())
    return DatasetReport(
        name="",
        format=guess.format,
        confidence=guess.confidence,
        reason=guess.reason,
        rows=len(side.hashes),
        eval_rows=len(held_out.hashes),
        skipped=side.bad + held_out.bad,
        problems=tuple(map(str, side.problems + held_out.problems)),
        extra_fields=side.extra,
        sha256=side.digest.hexdigest(),
        columns=dict(columns),
        details={"overlap": side.overlap, "overlap_dropped": asked.drop_overlap},
    )
