"""Small files of measurements: whose they are, written whole, and forgotten where they are broken."""

import json
import os

import pytest

from qlora_studio.core.plan import GpuInfo
from qlora_studio.planner import kept
from qlora_studio.planner.kept import machine_key, read_kept, write_kept, write_whole

CARD = GpuInfo(index=0, name="RTX", total_bytes=8, free_bytes=7, uuid="GPU-1")


def test_measurements_are_kept_by_uuid_else_by_name_and_size_and_for_the_processor():
    assert machine_key(CARD) == "GPU-1"
    assert machine_key(CARD.model_copy(update={"uuid": ""})) == "RTX 8"
    assert machine_key(None) == "cpu"


def test_a_file_is_flushed_before_it_has_its_name_and_nothing_else_is_left(tmp_path, monkeypatch):
    path, flushed = tmp_path / "deep" / "er" / "x.json", []
    monkeypatch.setattr(kept.os, "fsync", lambda number: flushed.append((os.fstat(number).st_size, path.exists())))
    write_kept(path, {"a": [1]})
    assert flushed == [(path.stat().st_size, False)] and read_kept(path) == {"a": [1]} == json.loads(path.read_text())
    write_whole(path, b"other")
    assert path.read_bytes() == b"other" and [one.name for one in path.parent.iterdir()] == ["x.json"]


@pytest.mark.parametrize("content", [None, b"{", b"[1]", b"3", b"\xff", b"[" * 100_000])
def test_a_file_that_holds_no_object_says_nothing(tmp_path, content):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    assert read_kept(path) == {}
