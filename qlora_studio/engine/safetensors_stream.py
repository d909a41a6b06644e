"""Safetensors by byte range: one tensor in memory at a time, no memory map, header written before any data.

The format is eight bytes of header length, a JSON header with dtype, shape and offsets of each tensor, then the bytes.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from qlora_studio.core.errors import StudioError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
COPY_BYTES = 16 << 20
MOST_HEADER_BYTES = 100 << 20  # the format's own limit


class SafetensorsFile:
    """A file read one tensor at a time. Raises a StudioError where its header does not cover its bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("rb")
        size = path.stat().st_size
        prefix = self.file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if length > min(size - 8, MOST_HEADER_BYTES):
            raise StudioError("This weights file is cut off.", "Download the model again.", where=str(path))
        try:
            header: dict[str, Any] = json.loads(self.file.read(length))
        except ValueError:
            raise StudioError(
                "This weights file has no readable header.", "Download the model again.", where=str(path)
            ) from None
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        self.header = header
        self.start = 8 + length
        if self.start + max((entry["data_offsets"][1] for entry in header.values()), default=0) != size:
            raise StudioError("This weights file is cut off or too long.", "Download the model again.", where=str(path))

    def close(self) -> None:
        self.file.close()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.header[name]["shape"])

    def dtype(self, name: str) -> str:
        return str(self.header[name]["dtype"])

    def read(self, name: str) -> torch.Tensor:
        """One tensor, in its stored dtype and shape."""
        begin, end = self.header[name]["data_offsets"]
        buffer = bytearray(end - begin)
        self.file.seek(self.start + begin)
        self.file.readinto(buffer)
        return torch.frombuffer(buffer, dtype=DTYPES[self.dtype(name)]).reshape(self.shape(name))

    def copy(self, name: str, out: IO[bytes]) -> None:
        """The bytes of one tensor, as they are."""
        begin, end = self.header[name]["data_offsets"]
        self.file.seek(self.start + begin)
        left = end - begin
        while left:
            block = self.file.read(min(COPY_BYTES, left))
            out.write(block)
            left -= len(block)


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor to write: its header facts, and what writes its bytes when its turn comes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    write: Callable[[IO[bytes]], None]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def write_safetensors(path: Path, entries: Sequence[Entry], metadata: dict[str, str]) -> None:
    """Writes the file under a temporary name and renames it when every byte is there."""
    header: dict[str, Any] = {"__metadata__": {**metadata, "format": "pt"}}
    offset = 0
    for entry in entries:
        header[entry.name] = {
            "dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [offset, offset + entry.bytes],
        }  # fmt: skip
        offset += entry.bytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as out:
        out.write(struct.pack("<Q", len(encoded)))
        out.write(encoded)
        for entry in entries:
            entry.write(out)
        written = out.tell() - 8 - len(encoded)
        if written != offset:
            raise StudioError(f"{written} bytes were written where {offset} belong.", "Export again.", where=str(path))
        out.flush()
        os.fsync(out.fileno())
    part.replace(path)


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor without a copy."""
    array: Any = tensor.contiguous().view(torch.uint8).numpy()
    return memoryview(array).cast("B")
