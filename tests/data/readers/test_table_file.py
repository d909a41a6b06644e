"""What a table's reader says becomes rows, problems and one sentence where it did not come to the end."""

from __future__ import annotations

import io
import json
import os

import pytest

from qlora_studio.core.errors import Problem
from qlora_studio.data.readers import table_file
from qlora_studio.data.readers.rows import Row, Tally, Unseen
from qlora_studio.data.readers.table_file import _row, _seekable, read_arrow, read_parquet

A, B = {"row": {"a": 1}}, {"row": {"a": 2}}
AGAIN = "Write it again, or fetch it again."


def unseen(message):
    return Unseen(Problem(message, AGAIN, "f"))


@pytest.mark.parametrize(
    ("said", "code", "kind", "found", "counted"),
    [
        ([{"rows": 2}, A, {"rows": 1}, B, {"end": True}], 0, "Parquet", [Row("f", 1, {"a": 1}), Row("f", 2, {"a": 2})], 3),
        ([{"rows": 0}, {"end": True}], 0, "Arrow", [], 0),
        ([{"rows": 2}, A, {"rows": 1}], 7, "Parquet",
         [Row("f", 1, {"a": 1}),
          unseen("This Parquet file cannot be read: its reader ended (exit code 7). 3 rows are announced and 1 were read.")], 3),
        ([{"rows": 2}, A, {"broken": "bad page"}], 0, "Arrow",
         [Row("f", 1, {"a": 1}), unseen("This Arrow file cannot be read: bad page. 2 rows are announced and 1 were read.")], 2),
        ([{"broken": "no magic"}], 0, "Arrow", [unseen("This Arrow file cannot be read: no magic.")], 0),
        ([], 3, "Parquet", [unseen("This Parquet file cannot be read: its reader ended (exit code 3).")], 0),
        ([{"rows": 2}, {"bad": "no text", "field": "a"}, B, {"end": True}], 0, "Arrow",
         [Problem("This row cannot be read: no text.", "Write the file again.", "f:1", "a"), Row("f", 2, {"a": 2})], 2),
    ],
    ids=["whole", "empty", "ended", "broken inside", "broken", "silent", "a bad row"],
)  # fmt: skip
def test_what_the_reader_says(tmp_path, monkeypatch, said, code, kind, found, counted):
    lines = "".join(json.dumps(message) + "\n" for message in said)
    child = tmp_path / "child.py"
    child.write_text(
        f"import os, sys\nassert sys.argv[1] == {kind!r}\nos.write(1, {lines.encode()!r})\nos._exit({code})\n"
    )
    monkeypatch.setattr(table_file, "_CHILD", child)
    tally, read = Tally(), {"Parquet": read_parquet, "Arrow": read_arrow}[kind]
    assert list(read(io.BytesIO(b"any bytes"), "f", tally)) == found
    assert tally.rows == counted, "as many as are announced"


def test_a_row_without_a_field_is_named_by_its_number():
    assert _row({"bad": "x"}, "f", 12) == Problem("This row cannot be read: x.", "Write the file again.", "f:12", "")


def test_a_reader_gets_the_whole_file_however_far_it_was_read_before(tmp_path):
    content = os.urandom(5000)
    (tmp_path / "t").write_bytes(content)
    with (tmp_path / "t").open("rb") as stream:
        assert stream.read(4) == content[:4]
        with _seekable(stream) as source:
            assert os.read(source.fileno(), 6000) == content
        assert stream.read(4) == content[4:8], "and it stays open for the one who opened it"


def test_what_stands_inside_an_archive_is_copied_for_the_reader():
    content = os.urandom((1 << 20) + 5)
    with _seekable(io.BytesIO(content)) as source:
        assert source.tell() == 0 and source.read() == content
