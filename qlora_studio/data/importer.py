"""A file becomes a canonical set: read, detect, convert, write whole, report. The same content twice is one set."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from array import array
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Literal

from qlora_studio.core.conversation import Conversation
from qlora_studio.core.dataset import DatasetReport, FormatGuess
from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.data.canonical import (
    CONVERSATIONS,
    EVALUATION,
    REPORT,
    hashes_below,
    prompt_hash,
    read_conversations,
    read_report,
    to_line,
)
from qlora_studio.data.formats import convert, detect, find_format
from qlora_studio.data.readers import read_rows
from qlora_studio.data.rows import Row, RowOrProblem

_LOOKED_AT = 200
"""Rows that decide the format."""
_SHOWN = 10
"""Problems that are shown; all are counted."""


def import_file(
    path: Path,
    datasets_folder: Path,
    *,
    name: str = "",
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    skip_bad: bool = False,
) -> DatasetReport:
    """Imports a file into `<datasets_folder>/<name>/`, or finds it there unchanged.

    Raises a StudioError that carries the first problems and counts all of them; then nothing is written. With
    `skip_bad` the bad rows are left out and counted in the report instead.
    """
    sha256 = hash_file(path)
    wanted = {"format": format, "columns": dict(columns or {}), "skip_bad": skip_bad}
    name = _free_name(name, path, datasets_folder, sha256)
    target = datasets_folder / name
    if target.is_dir():
        report = read_report(target)
        if report.source_sha256 == sha256 and report.details.get("asked") == wanted:
            return report.model_copy(update={"unchanged": True})
    datasets_folder.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=".import-", dir=datasets_folder))
    try:
        report = _write(path, stage, name, sha256, format, columns or {}, skip_bad)
        report = report.model_copy(update={"details": {"asked": wanted}})
        (stage / REPORT).write_text(report.model_dump_json(indent=2), encoding="utf-8")
        if target.exists():
            shutil.rmtree(target)
        stage.replace(target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return report


def preview_file(
    path: Path, *, format: str = "auto", columns: Mapping[str, str] | None = None, rows: int = 20
) -> tuple[FormatGuess, list[Conversation], list[Problem]]:
    """The guessed format, the first conversations and the problems among them, without importing anything."""
    guess, items = _detected(read_rows(path), format, columns or {})
    found: list[Conversation] = []
    problems: list[Problem] = []
    entry = find_format(guess.format)
    for item in items:
        if len(found) + len(problems) >= rows:
            break
        try:
            if isinstance(item, Problem):
                raise StudioError.of([item])
            found.append(convert(item, entry, columns or {}))
        except StudioError as error:
            problems.append(error.problems[0])
    return guess, found, problems


def list_datasets(folder: Path) -> list[DatasetReport]:
    """The reports of all complete sets, by name."""
    if not folder.is_dir():
        return []
    return [
        read_report(path)
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".") and (path / REPORT).exists()
    ]


def load_conversations(
    folder: Path, name: str, split: Literal["train", "eval", "all"] = "train", eval_share: float = 0.05
) -> Iterator[Conversation]:
    """The conversations of one side of a set. Raises a StudioError where there is no such set."""
    place = folder / name
    if not name or Path(name).name != name or not (place / REPORT).exists():
        there = ", ".join(report.name for report in list_datasets(folder)) or "none yet"
        raise StudioError(f"There is no data set '{name}'.", f"There are: {there}.", field="data.sources")
    return _split(place, name, split, eval_share)


def _split(place: Path, name: str, split: str, eval_share: float) -> Iterator[Conversation]:
    if (place / EVALUATION).exists():
        if split != "eval":
            yield from read_conversations(place / CONVERSATIONS, name)
        if split != "train":
            yield from read_conversations(place / EVALUATION, name)
        return
    hashes = array("Q", (place / "prompts.bin").read_bytes())
    bound = hashes_below(hashes, eval_share)
    for mark, conversation in zip(hashes, read_conversations(place / CONVERSATIONS, name), strict=True):
        if split == "all" or (mark < bound) == (split == "eval"):
            yield conversation


def hash_file(path: Path) -> str:
    """The SHA-256 of a file. Raises a StudioError where it cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except IsADirectoryError:
        raise StudioError("This is a folder, not a file.", "Give one file.", where=str(path)) from None
    except FileNotFoundError:
        raise StudioError("There is no such file.", "Check the path.", where=str(path)) from None
    except OSError as error:
        raise StudioError(
            f"This file cannot be read: {error.strerror}.", "Check its rights.", where=str(path)
        ) from None


def _free_name(name: str, path: Path, folder: Path, sha256: str) -> str:
    """The name asked for, or one made from the file's; a name that holds other content gets the content's mark."""
    if name:
        if slug(name) != name:
            raise StudioError(f"'{name}' cannot be the name of a data set.", f"'{slug(name)}' can.", field="name")
        return name
    made = slug(path.stem)
    if (folder / made / REPORT).exists() and read_report(folder / made).source_sha256 != sha256:
        return f"{made}-{sha256[:8]}"
    return made


def slug(text: str) -> str:
    """A name that every file system takes."""
    made = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:60].strip("-._") or "data"
    return f"{made}-set" if re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", made) else made


def _detected(
    items: Iterator[RowOrProblem], format: str, columns: Mapping[str, str]
) -> tuple[FormatGuess, Iterator[RowOrProblem]]:
    """The format, from the first rows, and all items again."""
    head: list[RowOrProblem] = []
    for item in items:
        head.append(item)
        if len(head) >= _LOOKED_AT:
            break
    if format != "auto":
        return FormatGuess(format=find_format(format).name, confidence=1.0, reason="chosen"), chain(head, items)
    rows = [item for item in head if isinstance(item, Row)]
    if not rows and head:
        raise StudioError.of([item for item in head if isinstance(item, Problem)][:_SHOWN])
    return detect(rows, columns), chain(head, items)


def _write(
    path: Path, stage: Path, name: str, sha256: str, format: str, columns: Mapping[str, str], skip_bad: bool
) -> DatasetReport:
    try:
        guess, items = _detected(read_rows(path), format, columns)
    except StudioError as error:
        first = error.problems[0]
        raise StudioError(first.message, first.hint, where=first.where or path.name, field=first.field) from None
    entry = find_format(guess.format)
    hashes, digest = array("Q"), hashlib.sha256()
    problems: list[Problem] = []
    bad = 0
    extra: dict[str, int] = {}
    with (stage / CONVERSATIONS).open("w", encoding="utf-8", newline="\n") as out:
        for item in items:
            try:
                if isinstance(item, Problem):
                    raise StudioError.of([item])
                conversation = convert(item, entry, columns)
            except StudioError as error:
                bad += 1
                problems += error.problems[: _SHOWN - len(problems)]
                continue
            line = to_line(conversation) + "\n"
            out.write(line)
            digest.update(line.encode())
            hashes.append(prompt_hash(conversation))
            for field in conversation.extra:
                extra[field] = extra.get(field, 0) + 1
    if bad and not skip_bad:
        raise StudioError.of([*problems, *_more(bad, len(problems), path.name)])
    if not hashes:
        raise StudioError("No row of this file can be used.", "Look at the file.", where=path.name)
    (stage / "prompts.bin").write_bytes(hashes.tobytes())
    return DatasetReport(
        name=name,
        format=guess.format,
        confidence=guess.confidence,
        reason=guess.reason,
        rows=len(hashes),
        skipped=bad,
        problems=tuple(map(str, problems)),
        extra_fields=extra,
        source_file=path.name,
        source_sha256=sha256,
        source_bytes=path.stat().st_size,
        sha256=digest.hexdigest(),
        columns=dict(columns),
    )


def _more(bad: int, shown: int, file: str) -> list[Problem]:
    """The last line of a list of problems: how many there are in all, and the choice there is."""
    said = f"{bad} row{'s' if bad != 1 else ''} cannot be imported" + (
        f"; the first {shown} are shown." if bad > shown else "."
    )
    return [Problem(said, "Mend them, or choose to skip bad rows (--skip-bad).", file)]
