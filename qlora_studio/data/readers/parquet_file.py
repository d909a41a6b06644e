"""Parquet and Arrow tables, in batches. pyarrow is loaded when the first such file is read."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, BinaryIO

from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.data.readers.rows import Row, RowOrProblem

_BATCH_ROWS = 1024


def read_parquet(stream: BinaryIO, file: str) -> Iterator[RowOrProblem]:
    """Rows of a Parquet file; the line of a row is its number, from 1."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        yield from _rows(pq.ParquetFile(_seekable(stream)).iter_batches(_BATCH_ROWS), file)
    except (pa.ArrowException, OSError) as error:
        yield _broken(error, "Parquet", file)


def read_arrow(stream: BinaryIO, file: str) -> Iterator[RowOrProblem]:
    """Rows of an Arrow file or stream; the line of a row is its number, from 1."""
    import pyarrow as pa

    seekable = _seekable(stream)
    try:
        try:
            reader = pa.ipc.open_file(seekable)
            batches: Iterable[Any] = (reader.get_batch(index) for index in range(reader.num_record_batches))
        except pa.ArrowInvalid:
            seekable.seek(0)
            batches = pa.ipc.open_stream(seekable)
        yield from _rows(batches, file)
    except (pa.ArrowException, OSError) as error:
        yield _broken(error, "Arrow", file)


def _rows(batches: Iterable[Any], file: str) -> Iterator[RowOrProblem]:
    number = 0
    for batch in batches:
        names = batch.schema.names
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise StudioError(f"Two columns are named '{twice}'.", "Rename one.", where=file, field=twice)
        for values in batch.to_pylist():
            number += 1
            yield Row(file, number, {name: plain_value(value) for name, value in values.items()})


def plain_value(value: Any) -> Any:
    """A value as JSON holds it, with nothing lost: dates in ISO form, bytes in base64."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list | tuple):
        return [plain_value(item) for item in value]
    if isinstance(value, dict):
        return {str(name): plain_value(item) for name, item in value.items()}
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        return f"base64:{base64.b64encode(value).decode()}"
    if isinstance(value, Decimal | timedelta):
        return str(value)
    return str(value)


def _seekable(stream: BinaryIO) -> BinaryIO:
    """The stream itself, or a temporary copy of one that only reads forward (inside an archive)."""
    if stream.seekable():
        return stream
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as its reader
    while chunk := stream.read(1 << 20):
        copy.write(chunk)
    copy.seek(0)
    return copy


def _broken(error: Exception, kind: str, file: str) -> Problem:
    said = str(error).splitlines()[0].rstrip(".") if str(error) else "it is cut short"
    return Problem(f"This {kind} file cannot be read: {said}.", "Write it again, or fetch it again.", file)
