"""What the child that reads tables says, line by line, of tables made here."""

import io
import json
import runpy
import sys
from datetime import UTC, date, datetime, time
from decimal import Decimal
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qlora_studio.data.readers import table_child
from qlora_studio.data.readers.table_child import main, plain_value


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (None, None), ("a", "a"), (3, 3), (True, True), (1.5, 1.5),
        (float("inf"), "inf"), (float("-inf"), "-inf"), (float("nan"), "nan"),
        ([1, float("inf")], [1, "inf"]), ((1, b"a"), [1, "base64:YQ=="]),
        ({1: float("nan"), "b": [b"\xff"]}, {"1": "nan", "b": ["base64:/w=="]}),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02T03:04:05+00:00"),
        (date(2026, 1, 2), "2026-01-02"), (time(3, 4, 5), "03:04:05"), (Decimal("1.10"), "1.10"),
    ],
)  # fmt: skip
def test_a_value_is_written_with_nothing_lost(value, plain):
    assert plain_value(value) == plain and type(plain_value(value)) is type(plain)


def said(monkeypatch, capsys, content, kind):
    monkeypatch.setattr(table_child.sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    main(kind)
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def as_parquet(table):
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def as_arrow(table, make):
    sink = io.BytesIO()
    with make(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


TABLE = pa.table({"a": [1, 2, 3], "b": ["x", None, "z"]})
ROWS = [{"row": {"a": 1, "b": "x"}}, {"row": {"a": 2, "b": None}}, {"row": {"a": 3, "b": "z"}}]


def test_a_parquet_file_says_its_rows_first_and_comes_to_its_end(monkeypatch, capsys):
    assert said(monkeypatch, capsys, as_parquet(TABLE), "Parquet") == [{"rows": 3}, *ROWS, {"end": True}]


@pytest.mark.parametrize("make", [pa.ipc.new_file, pa.ipc.new_stream])
def test_an_arrow_file_or_stream_says_the_rows_of_each_batch(monkeypatch, capsys, make):
    expected = [{"rows": 2}, *ROWS[:2], {"rows": 1}, ROWS[2], {"end": True}]
    assert said(monkeypatch, capsys, as_arrow(TABLE, make), "Arrow") == expected


def test_two_columns_of_one_name_break_it_before_any_row(monkeypatch, capsys):
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2]), pa.array([3])], names=["b", "a", "a"])
    assert said(monkeypatch, capsys, as_arrow(twice, pa.ipc.new_file), "Arrow") == [
        {"rows": 1},
        {"broken": "two columns are named 'a'"},
    ]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("bad magic.\nand more"), "bad magic"),
        (ValueError("not \udc80 text"), "not ? text"),
        (EOFError(), "it is cut short"),
    ],
)
def test_what_the_library_says_of_a_broken_file_is_one_line(monkeypatch, capsys, error, reason):
    def broken(kind):
        raise error
        yield

    monkeypatch.setattr(table_child, "batches", broken)
    assert said(monkeypatch, capsys, b"", "Parquet") == [{"broken": reason}]


def test_a_row_that_cannot_be_told_is_named_with_its_field_and_the_others_come(monkeypatch, capsys):
    """A text of bytes that are not UTF-8: the library trips over it when the value is read."""
    binary = pa.array([b"good", b"\xff\xfe", b"fine"], type=pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, binary.buffers())
    table = pa.table({"n": [1, 2, 3], "text": text})
    lines = said(monkeypatch, capsys, as_arrow(table, pa.ipc.new_stream), "Arrow")
    assert [line for line in lines if "row" in line] == [
        {"row": {"n": 1, "text": "good"}},
        {"row": {"n": 3, "text": "fine"}},
    ]
    (bad,) = (line for line in lines if "bad" in line)
    assert bad["field"] == "text" and "utf-8" in bad["bad"] and lines.index(bad) == 2


@pytest.mark.parametrize("numbers", [[0], [None, 0], [0, None], [None]])
def test_times_of_a_zone_that_is_not_known_here_are_told_in_utc(monkeypatch, capsys, numbers):
    table = pa.table({"at": pa.array(numbers, pa.timestamp("s", "Nowhere/Land"))})
    (announced, *rows, end) = said(monkeypatch, capsys, as_arrow(table, pa.ipc.new_stream), "Arrow")
    told = {0: "1970-01-01T00:00:00+00:00", None: None}
    assert (announced, end) == ({"rows": len(numbers)}, {"end": True})
    assert rows == [{"row": {"at": told[number]}} for number in numbers]


def test_times_of_a_zone_that_is_known_and_of_none_are_told_as_they_are(monkeypatch, capsys):
    table = pa.table({"at": pa.array([0], pa.timestamp("ms", "+02:00")), "bare": pa.array([1], pa.timestamp("s"))})
    (_, row, _) = said(monkeypatch, capsys, as_arrow(table, pa.ipc.new_file), "Arrow")
    assert row == {"row": {"at": "1970-01-01T02:00:00+02:00", "bare": "1970-01-01T00:00:01"}}


def test_a_table_without_rows_comes_to_its_end(monkeypatch, capsys):
    empty = TABLE.slice(0, 0)
    assert said(monkeypatch, capsys, as_parquet(empty), "Parquet") == [{"rows": 0}, {"end": True}]
    assert said(monkeypatch, capsys, as_arrow(empty, pa.ipc.new_file), "Arrow") == [{"end": True}]


def test_bytes_that_are_no_table_are_said_to_be_broken(monkeypatch, capsys):
    for kind in ("Parquet", "Arrow"):
        (line,) = said(monkeypatch, capsys, b"no table at all", kind)
        assert list(line) == ["broken"] and "\n" not in line["broken"]
    assert said(monkeypatch, capsys, b"", "Parquet") == [
        {"broken": "Parquet file size is 0 bytes"},
    ]


def test_the_script_takes_the_kind_of_table_from_its_first_argument(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["table_child.py", "Arrow", "Parquet"])
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(as_arrow(TABLE, pa.ipc.new_stream))))
    runpy.run_path(table_child.__file__, run_name="__main__")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"rows": 2}, *ROWS[:2], {"rows": 1}, ROWS[2], {"end": True}]
