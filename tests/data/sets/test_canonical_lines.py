"""A conversation as a line, and a set as a folder: what is written, what is left out, what is read back."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from qlora_studio.core.conversation import Conversation, Pretokenised, Segment, Source, ToolCall, Turn
from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.data.sets.canonical import from_line, hashes_below, read_conversations, read_rows, swap_in, to_line

AT = Source("r\u00fc.jsonl", 3)
HI, HO = Turn("user", "hi"), Turn("assistant", "h\u00f6")
CALL = Turn("assistant", "", "r", (ToolCall("f", "{}", "c1"), ToolCall("g", "1")), "n", "t", False)
LINES = {
    "plain": (
        Conversation(turns=(HI, HO), source=AT),
        '{"turns":[{"role":"user","content":"hi"},{"role":"assistant","content":"h\u00f6"}],"source":["r\u00fc.jsonl",3]}',
    ),
    "a turn with everything": (
        Conversation(turns=(CALL,), source=AT),
        '{"turns":[{"role":"assistant","content":"","reasoning":"r","tool_calls":[["f","{}","c1"],["g","1",null]],'
        '"name":"n","tool_call_id":"t","train":false}],"source":["r\u00fc.jsonl",3]}',
    ),
    "empty words are words": (
        Conversation(turns=(replace(HI, reasoning="", name="", tool_call_id="", train=True),), source=AT),
        '{"turns":[{"role":"user","content":"hi","reasoning":"","name":"","tool_call_id":"","train":true}],"source":["r\u00fc.jsonl",3]}',
    ),
    "text": (Conversation(text="", source=AT), '{"text":"","source":["r\u00fc.jsonl",3]}'),
    "segments": (
        Conversation(segments=(Segment("a", True), Segment("b", False)), source=AT),
        '{"segments":[["a",true],["b",false]],"source":["r\u00fc.jsonl",3]}',
    ),
    "tokens": (
        Conversation(tokens=Pretokenised((1, 2), (-100, 2)), source=AT),
        '{"tokens":[[1,2],[-100,2]],"source":["r\u00fc.jsonl",3]}',
    ),
    "a pair with tools": (
        Conversation(turns=(HI, HO), rejected=(CALL,), tools=({"name": "f"},), extra={"id": 1}, source=AT),
        None,
    ),
    "labelled": (Conversation(turns=(HI, HO), label=False, source=AT), None),
    "labelled as good": (Conversation(turns=(HI, HO), label=True, source=AT), None),
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_a_line_holds_what_is_not_usual_and_gives_it_all_back(name):
    conversation, line = LINES[name]
    written = to_line(conversation)
    assert line is None or written == line
    assert from_line(written, "set") == replace(conversation, origin="set")
    kept = set(json.loads(written)) - {"source"}
    usual = Conversation()
    assert kept == {field for field in ("turns", "text", "segments", "tokens", "tools", "rejected", "label", "extra")
                    if getattr(conversation, field) != getattr(usual, field)}  # fmt: skip


def test_a_turn_of_two_other_fields_is_no_plain_one():
    assert from_line('{"turns":[{"role":"user","content":"a","train":true}],"source":["r",1]}').turns[0].train is True
    with pytest.raises(KeyError):
        from_line('{"turns":[{"role":"user","words":"a"}],"source":["r",1]}')


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "conversations.jsonl"
    path.write_text(
        "".join(to_line(Conversation(turns=(replace(HI, content=str(at)), HO), source=AT)) + "\n" for at in range(4))
    )
    return path


def test_rows_are_numbered_from_one_and_only_those_wanted_come(stored):
    assert [(row.number, row.read().turns[0].content, row.origin) for row in read_rows(stored, "s")] == [
        (1, "0", "s"), (2, "1", "s"), (3, "2", "s"), (4, "3", "s"),
    ]  # fmt: skip
    wanted = [False, True, False, True]
    assert [row.number for row in read_rows(stored, "s", wanted)] == [2, 4]
    assert [row.turns[0].content for row in read_conversations(stored, "s", wanted)] == ["1", "3"]


@pytest.mark.parametrize("count", [3, 5])
def test_other_rows_than_are_wanted_are_damage(stored, count):
    with pytest.raises(StudioError) as caught:
        list(read_rows(stored, "s", [True] * count))
    assert caught.value.problems == (
        Problem("The data set 's' is damaged.", "Import it again.", f"conversations.jsonl:{min(count, 4)}"),
    )


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "3", '{"turns": 3, "source": ["r", 1]}', '{"turns": []}', '{"tokens": [[1]], "source": ["r", 1]}'],
)
def test_a_damaged_line_is_named(stored, line):
    lines = stored.read_text().splitlines(keepends=True)
    stored.write_text(lines[0] + line + "\n" + lines[2])
    with pytest.raises(StudioError) as caught:
        list(read_conversations(stored, "s"))
    assert caught.value.problems[0].where == "conversations.jsonl:2"


def test_a_file_that_is_gone_is_damage(tmp_path):
    with pytest.raises(StudioError) as caught:
        list(read_rows(tmp_path / "x.jsonl", "s"))
    assert caught.value.problems[0].where == "x.jsonl:0"


def folder(place, content):
    place.mkdir()
    (place / "a").write_text(content)
    return place


def test_a_folder_takes_the_place_of_another_whole(tmp_path):
    folder(tmp_path / ".away-t", "left by a crash")
    target = folder(tmp_path / "t", "old")
    swap_in(folder(tmp_path / "s", "new"), target)
    assert (target / "a").read_text() == "new" and [place.name for place in tmp_path.iterdir()] == ["t"]
    swap_in(folder(tmp_path / "s", "first"), tmp_path / "u")
    assert sorted(place.name for place in tmp_path.iterdir()) == ["t", "u"]


def test_a_folder_whose_files_are_still_open_makes_room_all_the_same(tmp_path, monkeypatch):
    def in_use(*_, **__):
        raise PermissionError(13, "The file is used by another process")

    target = folder(tmp_path / "t", "old")
    monkeypatch.setattr(os, "unlink", in_use)
    swap_in(folder(tmp_path / "s", "new"), target)
    assert (target / "a").read_text() == "new"


def test_a_folder_that_cannot_come_leaves_the_old_one(tmp_path):
    target = folder(tmp_path / "t", "old")
    with pytest.raises(OSError):
        swap_in(tmp_path / "missing", target)
    assert (target / "a").read_text() == "old" and [place.name for place in tmp_path.iterdir()] == ["t"]


@pytest.mark.parametrize(
    ("hashes", "share", "bound"),
    [
        ([5, 1, 3], 0.05, 3),  # one of three: the smallest
        ([5, 1, 3, 1, 1], 0.34, 3),
        ([5, 1, 3], 0.9, 3),  # at most half
        ([1, 2, 3, 4], 0.5, 3),
        ([1, 2, 3, 4], 0.9, 3),
        (range(100, 200), 0.05, 105),
        (range(100, 200), 0.5, 150),
        (range(100, 200), 0.001, 101),
        ([1, 2], 0.5, 0),
        ([1, 1, 2, 2], 0.5, 0),
        ([1, 2, 3], 0, 0),
        ([1, 2, 3], -1, 0),
    ],
)
def test_the_smallest_hashes_are_held_out(hashes, share, bound):
    assert hashes_below(hashes, share) == bound
