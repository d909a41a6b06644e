"""A file, folder or archive of data becomes rows with file and line. Streamed; nothing is guessed, nothing is lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeVar

from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.data.readers.archive import MAX_ENTRIES, open_gzip, open_zip
from qlora_studio.data.readers.csv_file import read_csv
from qlora_studio.data.readers.json_file import read_json, read_jsonl
from qlora_studio.data.readers.rows import RowOrProblem, Tally, Unseen, shown_name
from qlora_studio.data.readers.table_file import read_arrow, read_parquet
from qlora_studio.data.readers.text_file import read_pieces

T = TypeVar("T")
Reader = Callable[[BinaryIO, str, Tally], Iterator[RowOrProblem]]


def _read_tsv(stream: BinaryIO, file: str, tally: Tally) -> Iterator[RowOrProblem]:
    return read_csv(stream, file, tally, "\t")


READERS: dict[str, Reader] = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".csv": read_csv,
    ".tsv": _read_tsv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".txt": read_pieces,
    ".md": read_pieces,
}
"""What reads a file, by the end of its name."""

SUFFIXES = (*READERS, ".gz", ".zip")
TEXTS = (".txt", ".md")
_CHUNK_BYTES = 1 << 20
_PASSED_OVER_SHOWN = 5
METADATA = frozenset(
    ["dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "croissant.json", "metadata.json"]
)
"""Files that stand beside the data of a hub's set and describe it."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a source, and what is read of it."""

    name: str
    rows: Iterator[RowOrProblem]
    alone: bool = False
    """Whether it is the whole source, and not one of the files of a folder or an archive."""


def read_rows(path: Path, tally: Tally | None = None) -> Iterator[RowOrProblem]:
    """Rows of all files of a source, one after another."""
    for file in read_files(path, tally if tally is not None else Tally()):
        yield from file.rows


def read_files(path: Path, tally: Tally) -> Iterator[SourceFile]:
    """The files of a file, a folder or an archive, each with its rows, and problems in the place of unreadable ones.

    Each is read to its end before the next one is asked for. Raises a StudioError where there is no such file or
    nothing that can be read.
    """
    if path.is_dir():
        yield from _read_folder(path, tally)
        return
    if not path.exists():
        raise StudioError("There is no such file.", "Check the path.", where=shown_name(str(path)))
    if not path.is_file():
        raise StudioError("This is neither a file nor a folder.", "Give a file of data.", where=shown_name(str(path)))
    yield from _open(path, shown_name(path.name), tally, alone=True)


def list_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The files of a folder that can be read, in order, and what is passed over with the reason.

    Links are not followed and hidden files are passed over. Raises a StudioError for more than 10,000 entries.
    """
    files: list[Path] = []
    passed_over: list[str] = []
    entries = count(1)
    for root, folders, names in os.walk(folder):
        inside = [(name, _reason(Path(root, name), name, folder=True)) for name in sorted(folders)]
        folders[:] = [name for name, reason in inside if not reason]
        inside = [*((name + "/", reason) for name, reason in inside if reason), *_reasons(root, names)]
        for name, reason in inside:
            if next(entries) > MAX_ENTRIES:
                raise StudioError(
                    f"This folder holds more than {MAX_ENTRIES} files.", "Give a smaller folder.", where=str(folder)
                )
            path = Path(root, name)
            if reason:
                shown = shown_name(path.relative_to(folder).as_posix()) + ("/" if name.endswith("/") else "")
                passed_over.append(f"{shown}: {reason}")
            else:
                files.append(path)
    kept, beside = _without_company([(path, path.name) for path in files])
    return kept, passed_over + [f"{shown_name(path.relative_to(folder).as_posix())}: {why}" for path, why in beside]


def _reasons(root: str, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    return ((name, _reason(Path(root, name), name)) for name in sorted(names))


def _reason(path: Path, name: str, folder: bool = False) -> str:
    """Why an entry of a folder is passed over, or an empty string."""
    if name.startswith("."):
        return "hidden"
    if path.is_symlink() or not (folder or path.is_file()):
        return "a link or no plain file"
    return "" if folder or suffix_of(name) in SUFFIXES else "not a kind of data"


def _without_company(files: list[tuple[T, str]]) -> tuple[list[T], list[tuple[T, str]]]:
    """The files that are data, and those that only stand beside them: descriptions, and text beside tables."""
    tables = any(suffix_of(name) not in TEXTS and name.lower() not in METADATA for _, name in files)
    kept: list[T] = []
    beside: list[tuple[T, str]] = []
    for file, name in files:
        if tables and name.lower() in METADATA:
            beside.append((file, "it describes the data"))
        elif tables and suffix_of(name) in TEXTS:
            beside.append((file, "text beside tables"))
        else:
            kept.append(file)
    return kept, beside


def suffix_of(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _read_folder(folder: Path, tally: Tally) -> Iterator[SourceFile]:
    files, passed_over = list_files(folder)
    tally.passed_over += passed_over
    if not files:
        passed = f" Passed over: {'; '.join(passed_over[:_PASSED_OVER_SHOWN])}." if passed_over else ""
        raise StudioError(
            f"This folder holds no file that can be read.{passed}",
            f"Put in one of: {', '.join(SUFFIXES)}.",
            where=shown_name(str(folder)),
        )
    for path in files:
        yield from _open(path, shown_name(path.relative_to(folder).as_posix()), tally)


def _open(path: Path, name: str, tally: Tally, *, alone: bool = False) -> Iterator[SourceFile]:
    """The files of one file on the disk: itself, or those of an archive."""
    try:
        with path.open("rb") as stream:
            head = stream.read(4)
            stream.seek(0)
            if head == b"PK\x03\x04":
                yield from _read_zip(stream, name, tally)
            else:
                yield SourceFile(name, _whole(stream, name, head, tally), alone)
    except StudioError as error:
        yield SourceFile(name, iter([Unseen(error.problems[0])]))
    except OSError as error:
        problem = Problem(f"This file cannot be read: {error.strerror or error}.", "Check its rights.", name)
        yield SourceFile(name, iter([Unseen(problem)]))


def _read_zip(stream: BinaryIO, file: str, tally: Tally) -> Iterator[SourceFile]:
    names = [(name, PurePosixPath(name).name) for name, entry, _ in open_zip(stream, file) if entry]
    readable = [pair for pair in names if suffix_of(pair[1]) in (*READERS, ".gz")]
    kept, beside = _without_company(readable)
    if not kept:
        raise StudioError(
            "This zip file holds no file that can be read.", f"Put in one of: {', '.join(READERS)}.", where=file
        )
    reasons = dict(beside)
    for name, entry, reason in open_zip(stream, file):
        where = f"{file}/{name}"
        if entry is None or name not in kept:
            tally.passed_over.append(f"{where}: {reason or reasons.get(name, 'not a kind of data')}")
        else:
            yield SourceFile(where, _whole(entry, where, b"", tally))


def _whole(stream: BinaryIO, file: str, head: bytes, tally: Tally) -> Iterator[RowOrProblem]:
    """All that a reader says of a file; a reader that stops before the end of the file is found out."""
    stopped = False
    try:
        inner, reader = _reader(stream, file, head)
        for item in reader(inner, file, tally):
            stopped = stopped or isinstance(item, Unseen)
            yield item
        if not stopped and reader not in (read_parquet, read_arrow) and (rest := _count_bytes(inner)):
            message = f"The last {rest} bytes of this file were not seen."
            yield Unseen(Problem(message, "Save the file again.", file))
    except StudioError as error:
        yield Unseen(error.problems[0])
    except OSError as error:
        yield Unseen(Problem(f"This file cannot be read: {error.strerror or error}.", "Check its rights.", file))


def _count_bytes(stream: BinaryIO) -> int:
    return sum(map(len, iter(lambda: stream.read(_CHUNK_BYTES), b"")))


def _reader(stream: BinaryIO, file: str, head: bytes) -> tuple[BinaryIO, Reader]:
    """Stream and reader by the file's name, after a look at its first bytes: a name that lies is caught."""
    suffix = suffix_of(file)
    if head[:2] == b"\x1f\x8b" or (suffix == ".gz" and not head):
        return open_gzip(stream, file), _by_name(file.removesuffix(suffix) if suffix == ".gz" else file, file)
    if suffix in (".gz", ".zip"):
        kind = "gzip" if suffix == ".gz" else "zip"
        raise StudioError(f"This is not a {kind} file, although its name says so.", "Save it again.", where=file)
    if head == b"PAR1":
        return stream, read_parquet
    return stream, _by_name(file, file)


def _by_name(name: str, where: str) -> Reader:
    suffix = suffix_of(name)
    if suffix not in READERS:
        raise StudioError(
            f"Files of the kind '{suffix or 'no ending'}' cannot be read.",
            f"Give one of: {', '.join(SUFFIXES)}.",
            where=where,
        )
    return READERS[suffix]
