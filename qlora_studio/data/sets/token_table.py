"""Examples on disk: written as they are made, read through a memory map, so that neither side holds a set in memory.

The file is safetensors (an eight-byte length, a JSON header, the arrays), so that anything can read it. Reading is done
with numpy alone: this room knows no torch.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import shutil
from array import array
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, overload

from qlora_studio.core.conversation import Source
from qlora_studio.core.example import Example

if TYPE_CHECKING:
    import numpy as np

ARRAYS = {
    "row_ends": ("I64", "q"),
    "span_ends": ("I64", "q"),
    "order": ("I64", "q"),
    "ids": ("I32", "i"),
    "spans": ("I32", "i"),
    "lines": ("I32", "i"),
    "files": ("I32", "i"),
    "origins": ("I32", "i"),
    "lengths": ("I32", "i"),
}
"""Name, type in the file and type code of each array; all are one-dimensional."""
_FLUSHED_ITEMS = 1 << 16
PartNames = dict[str, tuple[str, ...]]
"""Of each column that holds numbers of names: the names, by number."""


class TokenWriter:
    """Takes examples one by one. `append` and `finish` are all that may be called, in this order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.streams: dict[str, IO[bytes]] = {name: (folder / name).open("wb") for name in ARRAYS}
        self.held = {name: array(code) for name, (_, code) in ARRAYS.items()}
        self.counts = dict.fromkeys(ARRAYS, 0)
        self.names: dict[str, dict[str, int]] = {"files": {}, "origins": {}}
        self.digest = hashlib.sha256()
        self.tokens = self.span_numbers = 0

    def append(self, example: Example) -> None:
        ids = array("i", example.input_ids)
        spans = array("i", chain.from_iterable(example.spans))
        self.digest.update(ids.tobytes() + b"|" + spans.tobytes() + b"\n")
        self.tokens += len(ids)
        self.span_numbers += len(spans)
        held = self.held
        held["ids"].extend(ids)
        held["spans"].extend(spans)
        held["row_ends"].append(self.tokens)
        held["span_ends"].append(self.span_numbers)
        held["lines"].append(min(example.source.line, (1 << 31) - 1))
        for column, name in (("files", example.source.file), ("origins", example.origin)):
            known = self.names[column]
            held[column].append(known.setdefault(name, len(known)))
        if len(held["ids"]) > _FLUSHED_ITEMS:
            self._flush()

    def add_lengths(self, lengths: Sequence[int]) -> None:
        """Lengths of all rendered rows, those that were dropped included."""
        self.held["lengths"].extend(lengths)

    def add_order(self, order: Sequence[int]) -> None:
        """The rows that a mixture takes, by number; without it all are taken as they come."""
        numbers = array("q", order)
        self.digest.update(b"order" + numbers.tobytes())
        self.held["order"].extend(numbers)

    def _flush(self) -> None:
        for name, held in self.held.items():
            held.tofile(self.streams[name])
            self.counts[name] += len(held)
            del held[:]

    def pause(self) -> PartNames:
        """Closes what was written so far as a part of a longer table; nothing may be added to it afterwards."""
        self._flush()
        for stream in self.streams.values():
            stream.close()
        return {column: tuple(known) for column, known in self.names.items()}

    def add_part(self, folder: Path, names: PartNames) -> None:
        """Takes the examples of another writer that has paused, as if they were appended one by one.

        `names` are what its `pause` returned. Raises OSError where its folder does not hold them.
        """
        self._flush()
        part = {name: _bytes_of(folder / name) for name in ARRAYS}
        row_ends, span_ends = array("q", bytes(part["row_ends"])), array("q", bytes(part["span_ends"]))
        ids, spans = part["ids"], part["spans"]
        begin = start = 0
        for end, stop in zip(row_ends, span_ends, strict=True):
            self.digest.update(ids[begin * 4 : end * 4])
            self.digest.update(b"|" + bytes(spans[start * 4 : stop * 4]) + b"\n")
            begin, start = end, stop
        for name in ("ids", "spans", "lines"):
            self.streams[name].write(part[name])
            self.counts[name] += len(part[name]) // 4
        self.held["row_ends"].extend(self.tokens + end for end in row_ends)
        self.held["span_ends"].extend(self.span_numbers + end for end in span_ends)
        for column, theirs in names.items():
            known = self.names[column]
            ours = [known.setdefault(name, len(known)) for name in theirs]
            self.held[column].extend(ours[number] for number in array("i", bytes(part[column])))
        self.tokens += begin
        self.span_numbers += start

    def finish(self, path: Path, facts: dict[str, Any]) -> None:
        """Writes the table whole, with these facts in its header, and removes what was written on the way."""
        header: dict[str, Any] = {}
        position = 0
        self._flush()
        for name, (kind, _) in ARRAYS.items():
            self.streams[name].close()
            size = (self.folder / name).stat().st_size
            header[name] = {"dtype": kind, "shape": [self.counts[name]], "data_offsets": [position, position + size]}
            position += size
        facts = {**facts, "names": {column: list(known) for column, known in self.names.items()}}
        header["__metadata__"] = {"facts": json.dumps(facts, ensure_ascii=True), "sha256": self.digest.hexdigest()}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        stage = path.with_suffix(".part")
        with stage.open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name in ARRAYS:
                with (self.folder / name).open("rb") as stream:
                    shutil.copyfileobj(stream, out)
        stage.replace(path)

    def close(self) -> None:
        """Removes what the table was written from, whether it is whole or not wanted."""
        for stream in self.streams.values():
            stream.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class TokenTable(Sequence[Example]):
    """The examples of a file, made anew each time one is asked for."""

    def __init__(self, path: Path) -> None:
        """Raises OSError, ValueError or KeyError for a file that is not such a table."""
        with path.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            if not 0 < size < path.stat().st_size:
                raise ValueError(f"{path} is no table of tokens")
            header = json.loads(stream.read(size))
        self.facts: dict[str, Any] = json.loads(header["__metadata__"]["facts"])
        self.sha256: str = header["__metadata__"]["sha256"]
        self.arrays = {name: _map(path, 8 + size, header[name]) for name in ARRAYS}
        self.names: dict[str, list[str]] = self.facts["names"]
        end = max(header[name]["data_offsets"][1] for name in ARRAYS)
        if path.stat().st_size != 8 + size + end:
            raise ValueError(f"{path} is cut short")

    def __len__(self) -> int:
        return len(self.arrays["order"]) or len(self.arrays["row_ends"])

    @property
    def token_lengths(self) -> Sequence[int]:
        """Tokens of every example, without making any."""
        import numpy as np

        ends = self.arrays["row_ends"]
        lengths = np.diff(ends, prepend=0)
        order = self.arrays["order"]
        return array("q", (lengths[order] if len(order) else lengths).astype(np.int64).tobytes())

    @property
    def origins(self) -> Iterator[str]:
        """The set of every example, without making any."""
        order = self.arrays["order"]
        column = self.arrays["origins"][order] if len(order) else self.arrays["origins"]
        return (self.names["origins"][number] for number in column)

    @property
    def lengths(self) -> array[int]:
        """Tokens of every rendered row before anything was dropped or cut."""
        return array("i", self.arrays["lengths"].tobytes())

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self._example(number) for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._example(index % len(self))

    def __iter__(self) -> Iterator[Example]:
        return map(self._example, range(len(self)))

    def _example(self, index: int) -> Example:
        table, order = self.arrays, self.arrays["order"]
        row = int(order[index]) if len(order) else index
        first, last = (int(table["row_ends"][row - 1]) if row else 0), int(table["row_ends"][row])
        begin, end = (int(table["span_ends"][row - 1]) if row else 0), int(table["span_ends"][row])
        edges = table["spans"][begin:end].tolist()
        return Example(
            tuple(table["ids"][first:last].tolist()),
            tuple(zip(edges[::2], edges[1::2], strict=True)),
            source=Source(self.names["files"][table["files"][row]], int(table["lines"][row])),
            origin=self.names["origins"][table["origins"][row]],
        )


def _bytes_of(path: Path) -> memoryview:
    """A file through a memory map."""
    with path.open("rb") as stream:
        if not path.stat().st_size:
            return memoryview(b"")
        return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))


def _map(path: Path, offset: int, entry: dict[str, Any]) -> np.ndarray:
    import numpy as np

    count, kind = entry["shape"][0], {"I32": np.int32, "I64": np.int64}[entry["dtype"]]
    if not count:
        return np.empty(0, dtype=kind)
    return np.memmap(path, dtype=kind, mode="r", offset=offset + entry["data_offsets"][0], shape=(count,))
