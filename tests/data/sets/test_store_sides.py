"""Stored sets: found by name or title, counted and read by side, removed whole."""

from __future__ import annotations

import json
import os

import pytest

from qlora_studio.core.errors import StudioError
from qlora_studio.data.sets.importer import import_file
from qlora_studio.data.sets.sides import prompt_hash
from qlora_studio.data.sets.store import (
    count_rows,
    eval_prompts,
    find_dataset,
    list_datasets,
    load_conversations,
    remove_dataset,
)


@pytest.fixture
def home(tmp_path):
    """`one` is split by hash, `two words` brings its evaluation rows."""
    for name, count in (("one", 10), ("two", 4), ("held", 3)):
        rows = [{"prompt": f"{name} {row}", "completion": "a"} for row in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    import_file(tmp_path / "one.jsonl", tmp_path / "sets")
    import_file(tmp_path / "two.jsonl", tmp_path / "sets", name="Two words", eval_path=tmp_path / "held.jsonl")
    return tmp_path / "sets"


def prompts(home, name, split, share=0.05):
    return [row.turns[0].content for row in load_conversations(home, name, split, share)]


@pytest.mark.parametrize(
    ("name", "share", "counts"),
    [("one", 0.3, (7, 3, 10)), ("one", 0.05, (9, 1, 10)), ("one", 0, (10, 0, 10)), ("Two words", 0.3, (4, 3, 7)), ("two-words", 0, (4, 3, 7))],
)  # fmt: skip
def test_sides_are_counted_as_they_are_read(home, name, share, counts):
    found = [prompts(home, name, split, share) for split in ("train", "eval", "all")]
    assert tuple(map(len, found)) == counts
    assert tuple(count_rows(home, name, split, share) for split in ("train", "eval", "all")) == counts
    assert sorted(found[0] + found[1]) == sorted(found[2])
    assert eval_prompts(home, name, share) == {
        prompt_hash(row) for row in load_conversations(home, name, "eval", share)
    }


def test_the_smallest_hashes_are_held_out_in_the_order_of_the_file(home):
    rows = list(load_conversations(home, "one", "all"))
    smallest = sorted(rows, key=prompt_hash)[:3]
    assert list(load_conversations(home, "one", "eval", 0.3)) == [row for row in rows if row in smallest]
    assert prompts(home, "two-words", "all") == [
        *(f"two {row}" for row in range(4)),
        *(f"held {row}" for row in range(3)),
    ]
    assert {row.origin for row in rows} == {"one"}


def test_a_set_is_found_by_name_or_title_and_never_outside(home):
    assert find_dataset(home, "one") == home / "one"
    assert find_dataset(home, "Two words") == find_dataset(home, "two-words") == home / "two-words"
    (home.parent / "outside").mkdir()
    (home.parent / "outside" / "report.json").write_text("{}")
    for name in ("../outside", "one/", "", ".", "..", "three", "one\0", "/one"):
        if name in ("one/", "one\0", "/one"):
            assert find_dataset(home, name) == home / "one", "as the title that it is the slug of"
            continue
        with pytest.raises(StudioError) as caught:
            find_dataset(home, name)
        (problem,) = caught.value.problems
        assert (problem.message, problem.hint) == (f"There is no data set '{name}'.", "There are: one, two-words.")
    with pytest.raises(StudioError, match=r"There are: none yet\."):
        find_dataset(home / "nowhere", "one")


def test_only_whole_sets_that_are_not_hidden_are_listed(home):
    for name in (".hidden", "empty"):
        (home / name).mkdir()
    (home / ".hidden" / "report.json").write_bytes((home / "one" / "report.json").read_bytes())
    assert [report.name for report in list_datasets(home)] == ["one", "two-words"]
    assert list_datasets(home / "nowhere") == []


def test_a_removed_set_is_gone_whole(home):
    (home / ".removed-one").mkdir()
    (home / ".removed-one" / "left").write_text("by a crash")
    remove_dataset(home, "one")
    assert [place.name for place in home.iterdir()] == ["two-words"]


def test_a_removed_set_whose_files_are_still_open_is_gone_from_the_list(home, monkeypatch):
    def in_use(*_, **__):
        raise PermissionError(13, "The file is used by another process")

    monkeypatch.setattr(os, "unlink", in_use)
    remove_dataset(home, "one")
    assert [report.name for report in list_datasets(home)] == ["two-words"]
    assert (home / ".removed-one" / "report.json").exists()


def test_a_set_of_an_older_version_that_is_damaged_is_a_sentence(home):
    (home / "one" / "first-prompts.bin").unlink()
    (home / "one" / "conversations.jsonl").write_text("{\n")
    with pytest.raises(StudioError, match="The data set 'one' is damaged"):
        count_rows(home, "one", "all", 0.1)
    assert not (home / "one" / "first-prompts.bin").exists()


def test_another_number_of_rows_than_the_report_says_is_damage(home):
    hashes = (home / "one" / "first-prompts.bin").read_bytes()
    (home / "one" / "first-prompts.bin").write_bytes(hashes[:-8])
    with pytest.raises(StudioError) as caught:
        list(load_conversations(home, "one", "all"))
    assert str(caught.value) == "conversations.jsonl: The data set 'one' is damaged: rows are missing. Import it again."
