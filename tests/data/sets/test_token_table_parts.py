"""Examples through a file and back: whole, in parts, in another order; and what is no such file."""

from __future__ import annotations

import hashlib
import json
from array import array

import pytest

from qlora_studio.core.conversation import Source
from qlora_studio.core.example import Example, origins, token_lengths
from qlora_studio.data.sets import token_table
from qlora_studio.data.sets.token_table import TokenTable, TokenWriter

EXAMPLES = [
    Example((5, 6, 7), ((1, 3),), source=Source("a", 1), origin="one"),
    Example((8,), (), source=Source("b", 2), origin="one"),
    Example((), (), source=Source("a", 3), origin="two"),
    Example((9, 10, 11, 12), ((0, 1), (2, 4)), source=Source("a", 2**40), origin="two"),
    Example((13, 14), ((0, 2),), source=Source("c", 5), origin="one"),
]
READ = [
    *EXAMPLES[:3],
    Example((9, 10, 11, 12), ((0, 1), (2, 4)), source=Source("a", 2**31 - 1), origin="two"),
    EXAMPLES[4],
]
"""A line beyond 31 bits is the last that can be written."""


@pytest.fixture(params=[0, 3, 1 << 16], ids=["at once", "now and then", "at the end"])
def flushed(request, monkeypatch):
    """After how many tokens what is held is written."""
    monkeypatch.setattr(token_table, "_FLUSHED_ITEMS", request.param)


def digest_of(examples, order=None):
    digest = hashlib.sha256()
    for one in examples:
        spans = array("i", [edge for span in one.spans for edge in span])
        digest.update(array("i", one.input_ids).tobytes() + b"|" + spans.tobytes() + b"\n")
    if order is not None:
        digest.update(b"order" + array("q", order).tobytes())
    return digest.hexdigest()


def written(folder, examples=EXAMPLES, order=None, facts=None):
    writer = TokenWriter(folder / "parts" / "w")
    for example in examples:
        writer.append(example)
    writer.add_lengths([30, 10])
    writer.add_lengths([20])
    if order is not None:
        writer.add_order(order)
    writer.finish(folder / "t.safetensors", facts or {"rows": 3})
    writer.close()
    assert not (folder / "parts" / "w").exists() and not (folder / "t.part").exists()
    return TokenTable(folder / "t.safetensors")


def test_a_table_gives_back_what_was_written(tmp_path, flushed):
    table = written(tmp_path)
    assert list(table) == READ and len(table) == 5
    assert [table[index] for index in range(-5, 5)] == READ * 2
    assert table[1:4] == READ[1:4] and table[::-2] == READ[::-2] and table[9:] == []
    for index in (5, -6):
        with pytest.raises(IndexError):
            table[index]
    assert list(table.token_lengths) == list(token_lengths(READ)) == [3, 1, 0, 4, 2]
    assert list(table.origins) == list(origins(READ)) == ["one", "one", "two", "two", "one"]
    assert table.lengths == array("i", [30, 10, 20])
    assert table.facts == {"rows": 3, "names": {"files": ["a", "b", "c"], "origins": ["one", "two"]}}
    assert table.sha256 == digest_of(EXAMPLES)


def test_an_order_takes_rows_as_often_as_it_names_them(tmp_path, flushed):
    order = [4, 0, 3, 0, 1, 1, 2]
    table = written(tmp_path, order=order)
    assert list(table) == [READ[row] for row in order] and len(table) == 7
    assert list(table.token_lengths) == [2, 3, 4, 3, 1, 1, 0]
    assert list(table.origins) == ["one", "one", "two", "one", "one", "one", "two"]
    assert table[-1] == READ[2] and table.sha256 == digest_of(EXAMPLES, order)


def test_no_more_is_held_in_memory_than_so_many_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(token_table, "_FLUSHED_ITEMS", 4)
    writer = TokenWriter(tmp_path / "w")
    held = []
    for example in (*EXAMPLES, EXAMPLES[0]):  # of 3, 1, 0, 4, 2 and 3 tokens
        writer.append(example)
        held.append((len(writer.held["ids"]), len(writer.held["row_ends"]), writer.counts["ids"]))
    assert held == [(3, 1, 0), (4, 2, 0), (4, 3, 0), (0, 0, 8), (2, 1, 8), (0, 0, 13)]
    writer.close()
    assert all(stream.closed for stream in writer.streams.values()) and not (tmp_path / "w").exists()


def test_nothing_is_a_table_too(tmp_path):
    table = written(tmp_path, examples=[])
    assert list(table) == [] and len(table) == 0 and table.sha256 == digest_of([])


@pytest.mark.parametrize("cut", [0, 1, 3, 5])
def test_parts_of_other_writers_make_the_same_table(tmp_path, flushed, cut):
    whole = written(tmp_path)
    first, second = TokenWriter(tmp_path / "one"), TokenWriter(tmp_path / "two")
    for example in EXAMPLES[:cut]:
        first.append(example)
    for example in EXAMPLES[cut:]:
        second.append(example)
    names = second.pause()
    assert names == {
        "files": tuple(dict.fromkeys(one.source.file for one in EXAMPLES[cut:])),
        "origins": tuple(dict.fromkeys(one.origin for one in EXAMPLES[cut:])),
    }
    first.add_part(tmp_path / "two", names)
    first.append(EXAMPLES[0])
    first.add_lengths([30, 10, 20])
    first.finish(tmp_path / "p.safetensors", {"rows": 3})
    table = TokenTable(tmp_path / "p.safetensors")
    assert list(table) == [*READ, READ[0]] and table.facts == whole.facts
    assert table.sha256 == digest_of([*EXAMPLES, EXAMPLES[0]])


def test_a_part_that_is_not_there_is_an_error_of_the_disk(tmp_path):
    with pytest.raises(OSError):
        TokenWriter(tmp_path / "one").add_part(tmp_path / "gone", {"files": (), "origins": ()})


def test_the_file_is_safetensors_with_its_header_filled_to_eight_bytes(tmp_path):
    from safetensors.numpy import load_file

    written(tmp_path, facts={"note": "\u00e9"})
    path = tmp_path / "t.safetensors"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    assert size % 8 == 0 and content[8 : 8 + size].isascii()
    assert header["ids"] == {"dtype": "I32", "shape": [10], "data_offsets": header["ids"]["data_offsets"]}
    arrays = load_file(path)
    assert arrays["ids"].tolist() == [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    assert arrays["row_ends"].tolist() == [3, 4, 4, 8, 10] and arrays["span_ends"].tolist() == [2, 2, 2, 6, 8]
    assert arrays["spans"].tolist() == [1, 3, 0, 1, 2, 4, 0, 2] and arrays["lines"].tolist() == [1, 2, 3, 2**31 - 1, 5]
    assert arrays["files"].tolist() == [0, 1, 0, 0, 2] and arrays["origins"].tolist() == [0, 0, 1, 1, 0]


@pytest.mark.parametrize("harm", ["cut", "longer", "no header", "header beyond the end", "another header", "empty"])
def test_what_is_no_table_is_refused(tmp_path, harm):
    written(tmp_path)
    path = tmp_path / "t.safetensors"
    content = path.read_bytes()
    path.write_bytes(
        {
            "cut": content[:-1],
            "longer": content + b"\0",
            "no header": bytes(8) + content[8:],
            "header beyond the end": len(content).to_bytes(8, "little") + content[8:],
            "another header": (2).to_bytes(8, "little") + b"{}" + content[8:],
            "empty": b"",
        }[harm]
    )
    with pytest.raises((ValueError, KeyError)):
        TokenTable(path)
