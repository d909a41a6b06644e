"""Any file of data becomes rows with file and line. Streamed; what cannot be read is a problem, not a guess."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qlora_studio.core.errors import StudioError
from qlora_studio.data.readers_csv import read_csv
from qlora_studio.data.readers_json import read_json, read_jsonl
from qlora_studio.data.rows import RowOrProblem

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")


def read_rows(path: Path) -> Iterator[RowOrProblem]:
    """Rows of a file in order, and problems in the place of rows that cannot be read.

    Raises a StudioError where there is no such file or no reader for it.
    """
    if not path.exists():
        raise StudioError("There is no such file.", "Check the path.", where=str(path))
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise StudioError(
            f"Files of the kind '{suffix or 'no ending'}' cannot be read.",
            f"Give one of: {', '.join(SUFFIXES)}.",
            where=str(path),
        )
    with path.open("rb") as stream:
        if suffix == ".json":
            yield from read_json(stream, path.name)
        elif suffix in (".jsonl", ".ndjson"):
            yield from read_jsonl(stream, path.name)
        else:
            yield from read_csv(stream, path.name, "\t" if suffix == ".tsv" else None)
