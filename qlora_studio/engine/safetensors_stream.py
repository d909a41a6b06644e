"""Safetensors by byte range: one tensor in memory at a time, no memory map, header written before any data.

The format is eight bytes of header length, a JSON header with dtype, shape and offsets of each tensor, then the bytes.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from qlora_studio.core.errors import StudioError
from qlora_studio.weight_files import parse_strict_json

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
COPY_BYTES = 16 << 20
PIECE_VALUES = 4 << 20
MOST_HEADER_BYTES = 100 << 20  # the format's own limit


class SafetensorsFile:
    """A file read one tensor at a time.

    Raises a StudioError where its header is not one: every byte of the data belongs to exactly one tensor, whose dtype
    and shape take just that many.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("rb")
        try:
            self._read_header()
        except BaseException:
            self.file.close()
            raise

    def _read_header(self) -> None:
        size = os.fstat(self.file.fileno()).st_size
        prefix = self.file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if length > min(size - 8, MOST_HEADER_BYTES):
            raise self._broken("is cut off")
        try:
            header = parse_strict_json(self.file.read(length))
        except (ValueError, RecursionError) as error:
            raise self._broken(f"has no readable header: {error or 'it is nested too deep'}") from None
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise self._broken("has metadata that are not text")
        self.metadata: dict[str, str] = metadata
        self.header: dict[str, Any] = header
        self.start = 8 + length
        end = 0
        for name, entry in sorted(header.items(), key=lambda item: _begin(item[1])):
            if (problem := _find_fault(entry, end)) is not None:
                raise self._broken(f"lies about {name[:200]}: {problem}")
            end = entry["data_offsets"][1]
        if self.start + end != size:
            raise self._broken("is cut off or too long")

    def _broken(self, how: str) -> StudioError:
        return StudioError(f"This weights file {how}.", "Download the model again.", where=str(self.path))

    def close(self) -> None:
        self.file.close()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.header[name]["shape"])

    def dtype(self, name: str) -> str:
        return str(self.header[name]["dtype"])

    def read(self, name: str) -> torch.Tensor:
        """One tensor, in its stored dtype and shape."""
        begin, end = self.header[name]["data_offsets"]
        return self._read(name, begin, end - begin).reshape(self.shape(name))

    def read_rows(self, name: str, first: int, after: int) -> torch.Tensor:
        """Rows `first` to `after` of a tensor of at least one dimension, in its stored dtype."""
        shape = self.shape(name)
        row_bytes = math.prod(shape[1:]) * DTYPES[self.dtype(name)].itemsize
        begin = self.header[name]["data_offsets"][0] + first * row_bytes
        return self._read(name, begin, (after - first) * row_bytes).reshape(after - first, *shape[1:])

    def _read(self, name: str, begin: int, size: int) -> torch.Tensor:
        if not size:
            return torch.empty(0, dtype=DTYPES[self.dtype(name)])
        buffer = bytearray(size)
        self.file.seek(self.start + begin)
        if self.file.readinto(buffer) != size:
            raise self._broken("became shorter while it was read")
        return torch.frombuffer(buffer, dtype=DTYPES[self.dtype(name)])

    def copy(self, name: str, out: IO[bytes]) -> None:
        """The bytes of one tensor, as they are."""
        begin, end = self.header[name]["data_offsets"]
        self.file.seek(self.start + begin)
        left = end - begin
        while left:
            block = self.file.read(min(COPY_BYTES, left))
            if not block:
                raise self._broken("became shorter while it was read")
            out.write(block)
            left -= len(block)


def _begin(entry: Any) -> int:
    """Where a tensor's bytes begin, for sorting; 0 where the entry is none."""
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    return offsets[0] if isinstance(offsets, list) and offsets and isinstance(offsets[0], int) else 0


def _find_fault(entry: Any, begin: int) -> str | None:
    """What is wrong with the header's entry of a tensor whose bytes must start at `begin`; None where nothing is."""
    if not isinstance(entry, dict):
        return "its entry is no object"
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if dtype not in DTYPES:
        return f"its dtype is {str(dtype)[:50]}, which this version does not know"
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        return "its shape is not one"
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(offset) is int for offset in offsets):
        return "its place is not one"
    if offsets[0] != begin:
        return "its bytes do not follow those before"
    if offsets[1] - offsets[0] != math.prod(shape) * DTYPES[dtype].itemsize:
        return f"{offsets[1] - offsets[0]:,} bytes are no {dtype} of shape {str(shape)[:100]}"
    return None


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor to write: its header facts, and what writes its bytes when its turn comes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    write: Callable[[IO[bytes]], None]

    @property
    def bytes(self) -> int:
        """Of the tensor's data."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def write_safetensors(
    path: Path,
    entries: Sequence[Entry],
    metadata: dict[str, str],
    advanced: Callable[[int], None] = lambda bytes: None,
) -> None:
    """Writes the file under a temporary name and renames it when every byte is there; `advanced` gets bytes of data."""
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
            advanced(out.tell() - 8 - len(encoded))
        written = out.tell() - 8 - len(encoded)
        if written != offset:
            raise StudioError(f"{written} bytes were written where {offset} belong.", "Export again.", where=str(path))
        out.flush()
        os.fsync(out.fileno())
    part.replace(path)


def round_fairly(tensor: torch.Tensor, dtype: torch.dtype, chance: torch.Generator) -> Iterator[torch.Tensor]:
    """The tensor's values in `dtype`, piece by piece, rounded up or down by chance so that the mean is kept.

    A base's weights lie on bf16's grid. What training adds to them is often smaller than half a step of it, and rounding
    to the nearest would put such a weight back where it was. The same chance rounds the same.
    """
    if dtype is not torch.bfloat16 or tensor.dtype is not torch.float32:
        yield tensor.to(dtype)
        return
    for piece in tensor.reshape(-1).split(PIECE_VALUES):
        noise = torch.randint(0, 1 << 16, piece.shape, generator=chance, dtype=torch.int32)
        rounded = noise.add_(piece.view(torch.int32)).bitwise_and_(~0xFFFF).view(torch.float32)
        yield torch.where(piece.isfinite() & rounded.isfinite(), rounded, piece).to(dtype)


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor without a copy."""
    array: Any = tensor.contiguous().view(torch.uint8).numpy()
    return memoryview(array).cast("B")
