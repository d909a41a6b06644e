"""Parquet and Arrow tables, read in a process of their own: bytes that kill their reader do not kill the program."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from qlora_studio.core.errors import Problem
from qlora_studio.data.readers.rows import Row, RowOrProblem, Tally, Unseen

_CHILD = Path(__file__).with_name("table_child.py")


def read_parquet(stream: BinaryIO, file: str, tally: Tally) -> Iterator[RowOrProblem]:
    """Rows of a Parquet file; the line of a row is its number, from 1."""
    yield from _read(stream, file, tally, "Parquet")


def read_arrow(stream: BinaryIO, file: str, tally: Tally) -> Iterator[RowOrProblem]:
    """Rows of an Arrow file or stream; the line of a row is its number, from 1."""
    yield from _read(stream, file, tally, "Arrow")


def _read(stream: BinaryIO, file: str, tally: Tally, kind: str) -> Iterator[RowOrProblem]:
    command = [sys.executable, "-I", str(_CHILD), kind]
    number = announced = 0
    message: dict[str, Any] = {}
    with (
        _seekable(stream) as source,
        subprocess.Popen(command, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child,
    ):
        assert child.stdout
        try:
            for line in child.stdout:
                message = json.loads(line)
                if "rows" in message:
                    announced += message["rows"]
                    tally.rows += message["rows"]
                elif "row" in message or "bad" in message:
                    number += 1
                    yield _row(message, file, number)
        except ValueError:  # a line that broke off with the process
            message = {}
        finally:
            child.kill()
        code = child.wait()
    if not message.get("end"):
        problem = message.get("broken") or f"its reader ended (exit code {code})"
        lost = f" {announced} rows are announced and {number} were read." if announced else ""
        hint = "Write it again, or fetch it again."
        yield Unseen(Problem(f"This {kind} file cannot be read: {problem}.{lost}", hint, file))


def _row(message: dict[str, Any], file: str, number: int) -> RowOrProblem:
    if "bad" in message:
        return Problem(
            f"This row cannot be read: {message['bad']}.",
            "Write the file again.",
            f"{file}:{number}",
            message.get("field", ""),
        )
    return Row(file, number, message["row"])


def _seekable(stream: BinaryIO) -> BinaryIO:
    """The file itself for a child to read, or a temporary copy of a stream inside an archive."""
    try:
        os.lseek(stream.fileno(), 0, os.SEEK_SET)  # the child shares the place, which a buffered look has moved
        return open(stream.fileno(), "rb", closefd=False)
    except OSError:
        copy = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        shutil.copyfileobj(stream, copy)
        copy.seek(0)
        return copy
