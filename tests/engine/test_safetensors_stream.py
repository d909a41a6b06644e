"""Safetensors by byte range: the same bytes as the library's own, and a header that does not add up is refused by name."""

from __future__ import annotations

import io
import json
import math
import os
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qlora_studio.core.errors import StudioError
from qlora_studio.engine import safetensors_stream as stream
from qlora_studio.engine.safetensors_stream import (
    DTYPE_NAMES,
    DTYPES,
    Entry,
    SafetensorsFile,
    round_fairly,
    tensor_bytes,
    write_safetensors,
)

TENSORS = {
    "a": torch.arange(24, dtype=torch.float32).view(4, 3, 2),
    "b": torch.arange(6, dtype=torch.bfloat16).view(3, 2),
    "empty": torch.empty(0, 5),
    "scalar": torch.tensor(7, dtype=torch.int64),
    "yes": torch.tensor([True, False, True]),
}


@pytest.fixture
def stored(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"format": "pt", "who": "me"})
    file = SafetensorsFile(tmp_path / "x.safetensors")
    yield file
    file.close()


def test_tensors_come_back_one_by_one_as_the_library_wrote_them(stored):
    assert stored.metadata == {"format": "pt", "who": "me"} and set(stored.header) == set(TENSORS)
    for name, tensor in TENSORS.items():
        found = stored.read(name)
        assert torch.equal(found, tensor) and found.dtype == tensor.dtype
        assert stored.shape(name) == tuple(tensor.shape) and DTYPES[stored.dtype(name)] == tensor.dtype


@pytest.mark.parametrize(("first", "after"), [(0, 4), (0, 1), (1, 3), (3, 4), (2, 2)])
def test_rows_are_read_alone(stored, first, after):
    assert torch.equal(stored.read_rows("a", first, after), TENSORS["a"][first:after])


def test_rows_of_a_vector_and_of_another_width(stored):
    assert stored.read_rows("yes", 1, 3).tolist() == [False, True]
    assert torch.equal(stored.read_rows("b", 1, 2), TENSORS["b"][1:2])


@pytest.mark.parametrize("block", [1, 7, 96, 1 << 20])
def test_a_tensor_is_copied_byte_for_byte_in_blocks_of_any_size(stored, block, monkeypatch):
    monkeypatch.setattr(stream, "COPY_BYTES", block)
    for name, tensor in TENSORS.items():
        out = io.BytesIO()
        stored.copy(name, out)
        assert out.getvalue() == bytes(tensor.contiguous().view(-1).view(torch.uint8).numpy())


def test_what_a_file_loses_while_it_is_read_is_noticed(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(100, 1000)}, path)
    file = SafetensorsFile(path)
    with path.open("r+b") as opened:
        opened.truncate(file.start + 399_999)
    assert torch.equal(file.read_rows("a", 0, 99), torch.ones(99, 1000))
    for use in (lambda: file.read("a"), lambda: file.read_rows("a", 99, 100), lambda: file.copy("a", io.BytesIO())):
        with pytest.raises(StudioError) as caught:
            use()
        assert caught.value.problems[0].message == "This weights file became shorter while it was read."
    file.close()


def entries_of(tensors) -> list[Entry]:
    return [
        Entry(name, DTYPE_NAMES[value.dtype], tuple(value.shape), lambda out, v=value: out.write(tensor_bytes(v.view(-1))))
        for name, value in tensors.items()
    ]  # fmt: skip


def test_what_is_written_is_laid_out_as_the_format_says_and_told_as_it_goes(tmp_path):
    path, told = tmp_path / "out.safetensors", []
    entries = entries_of(TENSORS)
    assert [entry.bytes for entry in entries] == [96, 12, 0, 8, 3]
    write_safetensors(path, entries, {"who": "me"}, told.append)
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert length % 8 == 0 and len(data) == 8 + length + 119 and told == [96, 108, 108, 116, 119]
    assert data[8 : 8 + length].rstrip(b" ").endswith(b"}") and data[8 : 8 + length].count(b" ") < 8
    assert json.loads(data[8 : 8 + length]) == {
        "__metadata__": {"who": "me", "format": "pt"},
        "a": {"dtype": "F32", "shape": [4, 3, 2], "data_offsets": [0, 96]},
        "b": {"dtype": "BF16", "shape": [3, 2], "data_offsets": [96, 108]},
        "empty": {"dtype": "F32", "shape": [0, 5], "data_offsets": [108, 108]},
        "scalar": {"dtype": "I64", "shape": [], "data_offsets": [108, 116]},
        "yes": {"dtype": "BOOL", "shape": [3], "data_offsets": [116, 119]},
    }
    loaded = load_file(path)
    assert all(torch.equal(loaded[name], value) for name, value in TENSORS.items()) and len(loaded) == len(TENSORS)
    with safe_open(path, "pt") as opened:
        assert opened.metadata() == {"who": "me", "format": "pt"}
    assert [file.name for file in tmp_path.iterdir()] == ["out.safetensors"]
    write_safetensors(path, entries, {})
    assert load_file(path).keys() == TENSORS.keys(), "nobody has to listen"


@pytest.mark.parametrize("extra", [b"", b"12345"])
def test_a_tensor_that_writes_another_number_of_bytes_leaves_no_file(tmp_path, extra):
    path = tmp_path / "out.safetensors"
    with pytest.raises(StudioError) as caught:
        write_safetensors(path, [Entry("a", "F32", (1,), lambda out: out.write(extra) and None)], {})
    assert caught.value.message.endswith(f"{len(extra)} bytes were written where 4 belong.") and not path.exists()


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


FAULTS = {
    "no object": ({"a": [1]}, 0, "lies about a: its entry is no object."),
    "dtype": ({"a": entry("F4")}, 8, "lies about a: its dtype is F4, which this version does not know."),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, 8, "lies about a: its shape is not one."),
    "negative": ({"a": entry(shape=(-1,))}, 8, "lies about a: its shape is not one."),
    "true": ({"a": entry(shape=(True, 2))}, 8, "lies about a: its shape is not one."),
    "fraction": ({"a": entry(shape=(2.0,))}, 8, "lies about a: its shape is not one."),
    "three offsets": ({"a": entry(offsets=(0, 8, 8))}, 8, "lies about a: its place is not one."),
    "one offset": ({"a": entry(offsets=(0,))}, 8, "lies about a: its place is not one."),
    "offset a word": ({"a": entry(offsets=("0", "8"))}, 8, "lies about a: its place is not one."),
    "no offsets": ({"a": {"dtype": "F32", "shape": [2]}}, 8, "lies about a: its place is not one."),
    "a hole": ({"a": entry(), "b": entry(offsets=(9, 17))}, 17, "lies about b: its bytes do not follow those before."),
    "overlap": ({"a": entry(), "b": entry(offsets=(7, 15))}, 15, "lies about b: its bytes do not follow those before."),
    "begins late": ({"a": entry(offsets=(1, 9))}, 9, "lies about a: its bytes do not follow those before."),
    "too few bytes": ({"a": entry(offsets=(0, 4))}, 4, "lies about a: 4 bytes are no F32 of shape [2]."),
    "too many bytes": ({"a": entry(shape=(1,))}, 8, "lies about a: 8 bytes are no F32 of shape [1]."),
    "a long shape": ({"a": entry(shape=[1] * 60)}, 8, f"lies about a: 8 bytes are no F32 of shape [{'1, ' * 33}."),
    "a long dtype": ({"a": entry("x" * 60)}, 8, f"lies about a: its dtype is {'x' * 50}, which this version does not know."),
    "missing end": ({"a": entry()}, 7, "is cut off or too long."),
    "more behind": ({"a": entry()}, 9, "is cut off or too long."),
    "metadata": ({"__metadata__": {"a": 1}}, 0, "has metadata that are not text."),
    "metadata a list": ({"__metadata__": []}, 0, "has metadata that are not text."),
}  # fmt: skip


def raw(path, header: bytes, data: int):
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(data))
    return path


@pytest.mark.parametrize(("header", "data", "message"), FAULTS.values(), ids=FAULTS)
def test_a_header_that_does_not_add_up_is_refused_with_its_tensor(tmp_path, header, data, message):
    path = raw(tmp_path / "x.safetensors", json.dumps(header).encode(), data)
    with pytest.raises(StudioError) as caught:
        SafetensorsFile(path)
    assert caught.value.problems[0].message == f"This weights file {message}"
    assert (caught.value.hint, caught.value.problems[0].where) == ("Download the model again.", str(path))


def test_entries_may_stand_in_any_order(tmp_path):
    header = {"late": entry(offsets=(8, 16)), "early": entry()}
    file = SafetensorsFile(raw(tmp_path / "x.safetensors", json.dumps(header).encode(), 16))
    assert file.read("late").tolist() == [0.0, 0.0] and file.start == 8 + len(json.dumps(header))
    file.close()


@pytest.mark.parametrize(("data", "message"), [(b"", "is cut off"), (b"1234567", "is cut off"), (bytes(8), "readable")])
def test_a_file_without_a_whole_header_is_cut_off(tmp_path, data, message):
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(StudioError, match=message):
        SafetensorsFile(tmp_path / "x.safetensors")


def test_the_header_may_fill_the_file_but_not_go_beyond_it_nor_beyond_the_format_s_bound(tmp_path, monkeypatch):
    path, header = tmp_path / "x.safetensors", b'{"__metadata__":{}}'
    SafetensorsFile(raw(path, header, 0)).close()
    path.write_bytes(struct.pack("<Q", len(header) + 1) + header)
    with pytest.raises(StudioError, match="is cut off"):
        SafetensorsFile(path)
    monkeypatch.setattr(stream, "MOST_HEADER_BYTES", len(header))
    SafetensorsFile(raw(path, header, 0)).close()
    monkeypatch.setattr(stream, "MOST_HEADER_BYTES", len(header) - 1)
    with pytest.raises(StudioError, match="is cut off"):
        SafetensorsFile(raw(path, header, 0))


def test_a_header_nested_too_deep_is_a_sentence(tmp_path):
    path = raw(tmp_path / "x.safetensors", b"[" * 200_000, 0)
    with pytest.raises(StudioError, match="has no readable header: "):
        SafetensorsFile(path)


@pytest.mark.parametrize("pieces", [3, 1 << 20])
def test_rounding_takes_one_of_the_two_neighbours_and_the_nearer_one_more_often(pieces, monkeypatch):
    monkeypatch.setattr(stream, "PIECE_VALUES", pieces)
    count = 400 if pieces == 3 else 40_000
    step = 2.0**-7  # between neighbours of bf16 from 1 to 2
    values = torch.full((count,), 1 + step / 4)
    found = list(round_fairly(values, torch.bfloat16, torch.Generator().manual_seed(0)))
    assert [len(one) for one in found] == ([3] * 133 + [1] if pieces == 3 else [count])
    rounded = torch.cat(found)
    assert rounded.dtype == torch.bfloat16 and set(rounded.tolist()) == {1.0, 1 + step}
    share = float((rounded > 1).float().mean())
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / count)


def test_what_lies_on_the_grid_or_is_not_rounded_stays():
    grid = torch.randn(1000).bfloat16()
    chance = torch.Generator().manual_seed(0)
    (same,) = round_fairly(grid.float(), torch.bfloat16, chance)
    assert torch.equal(same, grid)
    odd = torch.tensor([float("inf"), float("-inf"), float("nan"), 3.4e38, -1.5])
    (kept,) = round_fairly(odd, torch.bfloat16, chance)
    assert kept[0] == float("inf") and kept[1] == float("-inf") and bool(kept[2].isnan()) and kept[4] == -1.5
    (half,) = round_fairly(torch.tensor([1.0001]), torch.float16, chance)
    assert half.dtype == torch.float16 and half.item() == torch.tensor([1.0001]).half().item()
    source = torch.tensor([1.0001], dtype=torch.float64)
    (plain,) = round_fairly(source, torch.bfloat16, chance)
    assert plain.item() == 1.0


def test_bytes_of_a_tensor_are_those_of_its_order_not_of_its_memory():
    moved = torch.arange(6, dtype=torch.int16).view(2, 3).T
    assert bytes(tensor_bytes(moved)) == struct.pack("<6h", 0, 3, 1, 4, 2, 5)


def test_a_file_is_on_the_disk_whole_before_it_has_its_name(tmp_path, monkeypatch):
    path, seen, fsync = tmp_path / "x.safetensors", [], os.fsync

    def look(handle):
        seen.append((path.with_name("x.safetensors.part").stat().st_size, path.exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", look)
    write_safetensors(path, [Entry("a", "U8", (5,), lambda out: out.write(b"12345"))], {})
    assert seen == [(path.stat().st_size, False)] and path.read_bytes().endswith(b"12345")
