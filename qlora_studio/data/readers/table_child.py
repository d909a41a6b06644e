"""The process that reads a Parquet or Arrow table from its input and says each row as a line of JSON.

It first says how many rows the file announces, then each row, or what is wrong with it, then that it came to the end.
It knows nothing of this program, so that it starts quickly.
"""

from __future__ import annotations

import base64
import json
import math
import sys
from collections.abc import Iterator
from datetime import date, datetime, time
from typing import Any

BATCH_ROWS = 1024


def plain_value(value: Any) -> Any:
    """A value as JSON holds it, with nothing lost: dates in ISO form, bytes in base64."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, list | tuple):
        return [plain_value(item) for item in value]
    if isinstance(value, dict):
        return {str(name): plain_value(item) for name, item in value.items()}
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        return f"base64:{base64.b64encode(value).decode()}"
    return str(value)


def send(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")


def batches(kind: str) -> Iterator[Any]:
    """The batches of the file, whose number of rows is said before their values are read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = sys.stdin.buffer
    if kind == "Parquet":
        table = pq.ParquetFile(source)
        send({"rows": table.metadata.num_rows})
        yield from table.iter_batches(BATCH_ROWS)
        return
    try:
        reader = pa.ipc.open_file(source)
        found: Iterator[Any] = (reader.get_batch(index) for index in range(reader.num_record_batches))
    except pa.ArrowInvalid:
        source.seek(0)
        found = iter(pa.ipc.open_stream(source))
    for batch in found:
        send({"rows": batch.num_rows})
        yield batch


def rows(batch: Any) -> Iterator[dict[str, Any]]:
    """The rows of a batch; where one of them cannot be told, each value is tried alone."""
    columns = [without_timezone(column) for column in batch.columns]
    names = batch.schema.names
    try:
        values_by_column = [[plain_value(value) for value in column.to_pylist()] for column in columns]
    except Exception:  # the library raises bare Unicode, value and key errors of what it meets
        for index in range(batch.num_rows):
            yield one_row(names, columns, index)
        return
    for values in zip(*values_by_column, strict=True):
        yield {"row": dict(zip(names, values, strict=True))}


def one_row(names: list[str], columns: list[Any], index: int) -> dict[str, Any]:
    values = {}
    for name, column in zip(names, columns, strict=True):
        try:
            values[name] = plain_value(column[index].as_py())
        except Exception as error:  # as above: named with its row and field
            return {"bad": (str(error) or type(error).__name__).splitlines()[0].rstrip("."), "field": name}
    return {"row": values}


def without_timezone(column: Any) -> Any:
    """Times of a zone that this machine does not know, as what they are: UTC."""
    import pyarrow as pa

    if not pa.types.is_timestamp(column.type) or column.type.tz is None:
        return column
    try:
        pa.scalar(0, column.type).as_py()
    except Exception:  # the library raises its own kinds for zones, and those of the zone libraries below it
        return column.cast(pa.timestamp(column.type.unit, tz="UTC"))
    return column


def main(kind: str) -> None:
    try:
        for batch in batches(kind):
            names = batch.schema.names
            if len(set(names)) != len(names):
                twice = next(name for name in names if names.count(name) > 1)
                send({"broken": f"two columns are named '{twice}'"})
                return
            for row in rows(batch):
                send(row)
    except Exception as error:  # a door: whatever the library says of a broken file, in one line
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else "it is cut short"
        send({"broken": reason.encode("utf-8", "replace").decode()})
        return
    send({"end": True})


if __name__ == "__main__":
    main(sys.argv[1])
