"""Compressed files with bounds: a small file cannot become an endless one, and no entry leaves its archive."""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import BinaryIO, cast

from qlora_studio.core.errors import StudioError

MAX_RATIO = 100
"""Largest growth while unpacking; text packs 3 to 20 times."""
MAX_TOTAL_BYTES = 2 << 30
MAX_ENTRIES = 10_000
_RATIO_FROM_BYTES = 16 << 20
"""Below this size the growth does not matter."""


class _Bounded(io.RawIOBase):
    """A stream that refuses to grow beyond the bounds."""

    def __init__(self, inner: BinaryIO, file: str, packed_bytes: int, budget: list[int]) -> None:
        self.inner, self.file, self.packed_bytes, self.budget = inner, file, packed_bytes, budget
        self.unpacked_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        try:
            data = self.inner.read(len(buffer))
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
            raise StudioError(
                f"This file cannot be unpacked: {str(error).rstrip('.') or 'it is broken'}.",
                "Save it again.",
                where=self.file,
            ) from None
        buffer[: len(data)] = data
        self.unpacked_bytes += len(data)
        self.budget[0] -= len(data)
        grown = self.unpacked_bytes > max(_RATIO_FROM_BYTES, MAX_RATIO * self.packed_bytes)
        if grown or self.budget[0] < 0:
            bound = f"{MAX_RATIO} times its size" if grown else f"{MAX_TOTAL_BYTES >> 30} GB"
            raise StudioError(
                f"This file unpacks to more than {bound}.", "Unpack it yourself if you trust it.", where=self.file
            )
        return len(data)


def open_gzip(stream: BinaryIO, file: str, packed_bytes: int) -> BinaryIO:
    """The unpacked stream of a gzip file of this size."""
    inner = cast(BinaryIO, gzip.GzipFile(fileobj=stream))
    return io.BufferedReader(_Bounded(inner, file, packed_bytes, [MAX_TOTAL_BYTES]), 1 << 20)


def open_zip(stream: BinaryIO, file: str) -> Iterator[tuple[str, BinaryIO]]:
    """Name and stream of each data file of a zip. Raises a StudioError for anything that tries to be more than that."""
    try:
        archive = zipfile.ZipFile(stream)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise StudioError(f"This zip file is broken: {error}.", "Save it again.", where=file) from None
    with archive:
        entries = archive.infolist()
        if len(entries) > MAX_ENTRIES:
            raise StudioError(
                f"This zip file holds more than {MAX_ENTRIES} entries.", "Give a smaller one.", where=file
            )
        budget = [MAX_TOTAL_BYTES]
        found = False
        for entry in sorted(entries, key=lambda entry: entry.filename):
            if _is_data(entry, file):
                found = True
                inner = cast(BinaryIO, archive.open(entry))
                bounded = _Bounded(inner, f"{file}/{entry.filename}", entry.compress_size, budget)
                yield entry.filename, io.BufferedReader(bounded, 1 << 20)
        if not found:
            raise StudioError("This zip file holds no file.", "Put data files into it.", where=file)


def _is_data(entry: zipfile.ZipInfo, file: str) -> bool:
    """Whether an entry is a file to read. Raises for entries that are dangerous or locked."""
    name, where = entry.filename, f"{file}/{entry.filename}"
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise StudioError("This entry's path leads out of the zip file.", "Do not trust this file.", where=where)
    if (entry.external_attr >> 16) & 0o170000 == 0o120000:
        raise StudioError("This entry is a link.", "Put the file itself into the zip.", where=where)
    if entry.flag_bits & 1:
        raise StudioError("This entry is locked with a password.", "Save it without one.", where=where)
    return not entry.is_dir() and not path.name.startswith(".") and path.parts[0] != "__MACOSX"
