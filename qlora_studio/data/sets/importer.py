"""A file becomes a canonical set: read, detect, convert, write whole, report. The same content twice is one set."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_studio.core.dataset import DatasetReport
from qlora_studio.core.errors import StudioError
from qlora_studio.data.readers.files import SourceFile, read_files
from qlora_studio.data.readers.hub_set import HubSet, pin, read_hub
from qlora_studio.data.readers.rows import Tally, shown_name
from qlora_studio.data.sets.canonical import (
    CONVERSATIONS,
    EVALUATION,
    PROMPTS,
    REFUSED,
    REPORT,
    read_report,
    swap_in,
)
from qlora_studio.data.sets.conversion import Conversion
from qlora_studio.data.sets.identity import hash_path, size_of, slug
from qlora_studio.data.sets.preview import Preview, preview_file
from qlora_studio.data.sets.store import list_datasets, load_conversations
from qlora_studio.data.sets.writer import SetWriter
from qlora_studio.faults import fault
from qlora_studio.home import read_path

__all__ = [
    "HubSet",
    "Preview",
    "import_file",
    "import_hub",
    "list_datasets",
    "load_conversations",
    "preview_file",
    "slug",
]

Files = Callable[[Tally], Iterator[SourceFile]]
"""Reads the files of a source, counting their rows."""


@dataclass(frozen=True, slots=True)
class _Choices:
    """What the person chose for an import."""

    format: str = "auto"
    columns: Mapping[str, str] | None = None
    skip_bad: bool = False
    drop_overlap: bool = False
    replace: bool = False

    def as_json(self, evaluation: str) -> dict[str, Any]:
        """What makes another set of the same file."""
        columns = dict(sorted((self.columns or {}).items()))
        return {
            "format": self.format,
            "columns": columns,
            "skip_bad": self.skip_bad,
            "drop_overlap": self.drop_overlap,
            "evaluation": evaluation,
        }


@dataclass(frozen=True, slots=True)
class _Source:
    """Where rows come from, and what it is known by."""

    name: str
    files: Files
    sha256: str
    size_bytes: int = 0
    eval_files: Files | None = None
    eval_sha256: str = ""


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
    counts all of them; then nothing is written. With `skip_bad` bad rows are left out and counted instead, except
    where part of the source was not seen. A `name` with spaces or capitals is kept as the set's title.
    """
    path = read_path(str(path))
    eval_path = read_path(str(eval_path)) if eval_path else None
    source = _Source(
        shown_name(path.name),
        lambda tally: read_files(path, tally),
        hash_path(path),
        size_of(path),
        (lambda tally: read_files(eval_path, tally)) if eval_path else None,
        hash_path(eval_path) if eval_path else "",
    )
    choices = _Choices(format, columns, skip_bad, drop_overlap, replace)
    return _import(source, datasets_folder, name, name or slug(path.stem), choices)


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
    source = _Source(
        f"{pinned}@{pinned.revision}",
        lambda tally: iter([SourceFile(str(pinned), read_hub(pinned, tally), alone=True)]),
        key,
    )
    made = name or slug(pinned.id.rpartition("/")[2])
    return _import(source, datasets_folder, name, made, _Choices(format, columns, skip_bad))


def _import(source: _Source, folder: Path, given_name: str, title: str, choices: _Choices) -> DatasetReport:
    """Writes a set under the slug of its title, or finds it there."""
    details = {"choices": choices.as_json(source.eval_sha256)}
    name, known = _place(folder, title, bool(given_name), source.sha256, (details, choices.replace))
    if known:
        return known.model_copy(update={"unchanged": True})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".import-{os.getpid()}-", dir=folder))
    except OSError as error:
        raise StudioError(
            f"Nothing can be written here: {error.strerror}.", "Choose another home folder.", where=str(folder)
        ) from None
    try:
        report = _write(source, stage, choices)
        fault("import.written")
        update = {
            "name": name,
            "title": title if title != name else "",
            "source_file": source.name,
            "source_sha256": source.sha256,
            "source_bytes": source.size_bytes,
            "details": {**report.details, **details},
        }
        report = report.model_copy(update=update)
        (stage / REPORT).write_text(report.model_dump_json(indent=2), encoding="utf-8")
        fault("import.whole")
        swap_in(stage, folder / name)
    except OSError as error:
        raise StudioError(
            f"The data set cannot be written: {error.strerror or error}.", "Make room on the disk.", where=str(folder)
        ) from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return report


def _place(
    folder: Path, title: str, is_given: bool, sha256: str, wanted: tuple[Mapping[str, Any], bool]
) -> tuple[str, DatasetReport | None]:
    """The name to write under, and the report where the same import stands there already."""
    details, replace = wanted
    name = slug(title)
    for made in (name, f"{name}-{sha256[:8]}"):
        if not (folder / made / REPORT).exists():
            return made, None
        try:
            there = read_report(folder / made)
        except StudioError:
            return made, None  # a damaged set is written anew
        if there.source_sha256 == sha256:
            same = there.details.get("choices") == details["choices"]
            return made, there if same else None
        if is_given and replace:
            return made, None
        if is_given:
            raise StudioError(
                f"There is already a data set '{name}' with other content.",
                "Choose another name, or replace it.",
                field="name",
            )
    raise StudioError(f"There are other data sets named '{name}'.", "Choose a name.", field="name")


def _write(source: _Source, stage: Path, choices: _Choices) -> DatasetReport:
    """Writes both sides of the set and gives their report; the account of rows is checked before anything else."""
    columns, file = choices.columns or {}, source.name
    held_out, tally = SetWriter(), Tally()
    with (stage / REFUSED).open("w", encoding="utf-8", newline="\n") as refused:
        eval_account = None
        if source.eval_files is not None:
            eval_tally, eval_name = Tally(), f"{file} (evaluation)"
            conversion = Conversion(source.eval_files(eval_tally), eval_tally, choices.format, columns, eval_name)
            held_out.write(conversion, stage / EVALUATION, refused, False)
            held_out.check(choices.skip_bad, eval_name)
            eval_account = held_out.account(eval_tally, eval_name)
        writer = SetWriter(frozenset(held_out.hashes))
        conversion = Conversion(source.files(tally), tally, choices.format, columns, file)
        writer.write(conversion, stage / CONVERSATIONS, refused, choices.drop_overlap)
    writer.check(choices.skip_bad, file)
    account = writer.account(tally, file)
    (stage / PROMPTS).write_bytes(writer.hashes.tobytes())
    writer.digest.update(held_out.digest.digest())
    guess = conversion.guess
    return DatasetReport(
        name="",
        format=guess.format,
        confidence=guess.confidence,
        reason=guess.reason,
        rows=len(writer.hashes),
        eval_rows=len(held_out.hashes),
        account=account.plus(eval_account) if eval_account else account,
        skipped=writer.refused + held_out.refused,
        problems=tuple(map(str, writer.problems + held_out.problems)),
        extra_fields=writer.extra,
        sha256=writer.digest.hexdigest(),
        columns=dict(columns),
        details={"overlap": writer.overlap, "overlap_dropped": choices.drop_overlap},
    )
