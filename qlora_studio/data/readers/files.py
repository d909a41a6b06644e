"""A file or folder of data becomes rows with file and line. Streamed; what cannot be read is a problem, not a guess."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.data.readers.archive import MAX_ENTRIES, open_gzip, open_zip
from qlora_studio.data.readers.csv_file import read_csv
from qlora_studio.data.readers.json_file import read_json, read_jsonl
from qlora_studio.data.readers.parquet_file import read_arrow, read_parquet
from qlora_studio.data.readers.rows import RowOrProblem
from qlora_studio.data.readers.text_file import read_pieces

Reader = Callable[[BinaryIO, str], Iterator[RowOrProblem]]


def _read_tsv(stream: BinaryIO, file: str) -> Iterator[RowOrProblem]:
    return read_csv(stream, file, "\t")


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


def read_rows(path: Path) -> Iterator[RowOrProblem]:
    """Rows of a file, of an archive's files or of a folder's, and problems in the place of rows that cannot be read.

    Raises a StudioError where there is no such file or no reader for it.
    """
    if path.is_dir():
        yield from _read_folder(path)
        return
    if not path.exists():
        raise StudioError("There is no such file.", "Check the path.", where=str(path))
    if not path.is_file():
        raise StudioError("This is neither a file nor a folder.", "Give a file of data.", where=str(path))
    try:
        with path.open("rb") as stream:
            yield from _read_stream(stream, path.name, path.stat().st_size)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StudioError(f"This file cannot be read: {reason}.", "Check its rights.", where=path.name) from None


def list_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The files of a folder that can be read, in order, and what is left out with the reason.

    Links are not followed and hidden files are left out. Raises a StudioError for more than 10,000 entries.
    """
    files: list[Path] = []
    left_out: list[str] = []
    entries = 0
    for root, folders, names in os.walk(folder, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            entries += 1
            if entries > MAX_ENTRIES:
                raise StudioError(
                    f"This folder holds more than {MAX_ENTRIES} files.", "Give a smaller folder.", where=str(folder)
                )
            path = Path(root, name)
            if name.startswith("."):
                left_out.append(f"{path.relative_to(folder).as_posix()}: hidden")
            elif path.is_symlink() or not path.is_file():
                left_out.append(f"{path.relative_to(folder).as_posix()}: a link or no plain file")
            elif suffix_of(name) not in SUFFIXES:
                left_out.append(f"{path.relative_to(folder).as_posix()}: not a kind of data")
            else:
                files.append(path)
    return files, left_out


def suffix_of(name: str) -> str:
    return Path(name).suffix.lower()


def _read_folder(folder: Path) -> Iterator[RowOrProblem]:
    files, left_out = list_files(folder)
    if not files:
        said = f" Left out: {'; '.join(left_out[:5])}." if left_out else ""
        raise StudioError(
            f"This folder holds no file that can be read.{said}",
            f"Put in one of: {', '.join(SUFFIXES)}.",
            where=str(folder),
        )
    for path in files:
        name = path.relative_to(folder).as_posix()
        try:
            with path.open("rb") as stream:
                yield from _read_stream(stream, name, path.stat().st_size)
        except StudioError as error:
            yield error.problems[0]
        except OSError as error:
            yield Problem(f"This file cannot be read: {error.strerror or error}.", "Check its rights.", name)


def _read_stream(stream: BinaryIO, file: str, size: int) -> Iterator[RowOrProblem]:
    """Dispatch by name, after a look at the first bytes: a name that lies about an archive is caught."""
    head = stream.read(4)
    stream.seek(0)
    suffix = suffix_of(file)
    if head[:2] == b"\x1f\x8b":
        inner = file[: -len(suffix)] if suffix == ".gz" else file
        yield from _reader(inner, file)(open_gzip(stream, file, size), file)
    elif head == b"PK\x03\x04":
        for name, entry in open_zip(stream, file):
            yield from _reader(name, f"{file}/{name}")(entry, f"{file}/{name}")
    elif suffix in (".gz", ".zip"):
        kind = "gzip" if suffix == ".gz" else "zip"
        raise StudioError(f"This is not a {kind} file, although its name says so.", "Save it again.", where=file)
    elif head == b"PAR1":
        yield from read_parquet(stream, file)
    else:
        yield from _reader(file, file)(stream, file)


def _reader(name: str, where: str) -> Reader:
    suffix = suffix_of(name)
    if suffix not in READERS:
        raise StudioError(
            f"Files of the kind '{suffix or 'no ending'}' cannot be read.",
            f"Give one of: {', '.join(SUFFIXES)}.",
            where=where,
        )
    return READERS[suffix]
