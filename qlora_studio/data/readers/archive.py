"""Compressed files with bounds: a small file cannot become an endless one, and no entry leaves its archive."""

from __future__ import annotations

import gzip
import io
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

from qlora_studio.core.errors import StudioError

MAX_RATIO = 100
"""Largest growth while unpacking; text packs 3 to 20 times."""
MAX_TOTAL_GB = 2
MAX_TOTAL_BYTES = MAX_TOTAL_GB << 30
MAX_ENTRIES = 10_000
_RATIO_FROM_BYTES = 4 << 20
"""Below this size the growth does not matter. It is measured on what was unpacked so far, so a bomb is found early."""
_BUFFER_BYTES = 1 << 20
_MODE_BITS = 16
"""Above so many bits of its attributes an entry that Unix has written keeps the file's mode."""


class _Counted:
    """A stream that counts what was read of it."""

    def __init__(self, inner: BinaryIO) -> None:
        self.inner, self.bytes = inner, 0

    def read(self, size: int = -1) -> bytes:
        data = self.inner.read(size)
        self.bytes += len(data)
        return data


class _Bounded(io.RawIOBase):
    """A stream that refuses to grow beyond the bounds. `packed_bytes` says how much was unpacked so far."""

    def __init__(self, inner: BinaryIO, file: str, packed_bytes: Callable[[], int], budget: list[int]) -> None:
        self.inner, self.file, self.packed_bytes, self.budget = inner, file, packed_bytes, budget
        self.unpacked_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
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
        grown = self.unpacked_bytes > max(_RATIO_FROM_BYTES, MAX_RATIO * self.packed_bytes())
        if grown or self.budget[0] < 0:
            bound = f"{MAX_RATIO} times its size" if grown else f"{MAX_TOTAL_GB} GB"
            raise StudioError(
                f"This file unpacks to more than {bound}.", "Unpack it yourself if you trust it.", where=self.file
            )
        return len(data)


def open_gzip(stream: BinaryIO, file: str) -> BinaryIO:
    """The unpacked stream of a gzip file."""
    packed = _Counted(stream)
    inner = cast(BinaryIO, gzip.GzipFile(fileobj=cast(BinaryIO, packed)))
    return io.BufferedReader(_Bounded(inner, file, lambda: packed.bytes, [MAX_TOTAL_BYTES]), _BUFFER_BYTES)


def open_zip(stream: BinaryIO, file: str) -> Iterator[tuple[str, BinaryIO | None, str]]:
    """Name and stream of each file of a zip, or None and why it is passed over.

    Raises a StudioError for an archive that is broken, and for one that tries to be more than files.
    """
    try:
        archive = zipfile.ZipFile(stream)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise StudioError(f"This zip file is broken: {error}.", "Save it again.", where=file) from None
    with archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        if len(entries) > MAX_ENTRIES:
            raise StudioError(
                f"This zip file holds more than {MAX_ENTRIES} entries.", "Give a smaller one.", where=file
            )
        if not entries:
            raise StudioError("This zip file holds no file.", "Put data files into it.", where=file)
        budget = [MAX_TOTAL_BYTES]
        for entry in entries:
            _check_entry(entry, file)
        for entry in sorted(entries, key=lambda entry: entry.filename):
            if reason := _passed_over(entry):
                yield entry.filename, None, reason
                continue
            try:
                inner = cast(BinaryIO, archive.open(entry))
            except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
                where = f"{file}/{entry.filename}"
                raise StudioError(f"This entry cannot be unpacked: {error}.", "Save it again.", where=where) from None
            bounded = _Bounded(inner, f"{file}/{entry.filename}", partial(int, entry.compress_size), budget)
            yield entry.filename, io.BufferedReader(bounded, _BUFFER_BYTES), ""


def _check_entry(entry: zipfile.ZipInfo, file: str) -> None:
    """Raises for entries that are dangerous or locked."""
    name, where = entry.filename, f"{file}/{entry.filename}"
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise StudioError("This entry's path leads out of the zip file.", "Do not trust this file.", where=where)
    if entry.flag_bits & 1:
        raise StudioError("This entry is locked with a password.", "Save it without one.", where=where)
    if entry.file_size > max(_RATIO_FROM_BYTES, MAX_RATIO * entry.compress_size):
        raise StudioError(
            f"This file unpacks to more than {MAX_RATIO} times its size.",
            "Unpack it yourself if you trust it.",
            where=where,
        )


def _passed_over(entry: zipfile.ZipInfo) -> str:
    """Why an entry is no file to read, or an empty string."""
    path = PurePosixPath(entry.filename.replace("\\", "/"))
    if stat.S_ISLNK(entry.external_attr >> _MODE_BITS):
        return "a link"
    hidden = any(part.startswith(".") for part in path.parts) or path.parts[0] == "__MACOSX"
    return "hidden" if hidden else ""
