"""What tokens are found by, what is written beside them, and what is cleared away."""

from __future__ import annotations

import errno
import json
import os

import pytest

from qlora_studio.core.config import DataConfig, DataSource
from qlora_studio.core.errors import StudioError
from qlora_studio.data.sets import token_cache
from qlora_studio.data.sets.importer import import_file
from qlora_studio.data.sets.prepare import RowsRequest
from qlora_studio.data.sets.token_cache import _prune, find_tokenised, rows_key, tokenise_rows


@pytest.fixture
def sets(tmp_path):
    for name in ("a", "b"):
        rows = [{"prompt": f"{name}{row}", "completion": "x"} for row in range(6)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        import_file(tmp_path / f"{name}.jsonl", tmp_path / "sets")
    return tmp_path / "sets"


def config(*names, **changes):
    return DataConfig(sources=tuple(DataSource(name=name) for name in names)).model_copy(update=changes)


def test_a_key_is_of_all_that_decides_tokens_and_of_nothing_else(sets):
    alone = rows_key(sets, config("a"), 1, "t")
    assert len(alone) == 32 and alone == rows_key(sets, config("a"), 2, "t"), "the seed mixes, and one set is not mixed"
    heavy = config("a").model_copy(update={"sources": (DataSource(name="a", weight=3),)})
    assert alone == rows_key(sets, heavy, 1, "t")
    assert alone == rows_key(sets, config("a", accepted=("copy",)), 1, "t")
    others = [
        rows_key(sets, config("b"), 1, "t"), rows_key(sets, config("a"), 1, "u"), rows_key(sets, config("a", max_length=9), 1, "t"),
        rows_key(sets, config("a", "b"), 1, "t"), rows_key(sets, config("a", "b"), 2, "t"), rows_key(sets, config("b", "a"), 1, "t"),
    ]  # fmt: skip
    assert len({alone, *others}) == 7


def test_what_is_kept_says_whether_it_was_there(sets, letters, tmp_path):
    request = RowsRequest(sets, letters, config("a"))
    assert find_tokenised(request, tmp_path / "cache") is None
    made = tokenise_rows(request, tmp_path / "cache")
    (place,) = (tmp_path / "cache" / "tokens").iterdir()
    assert place.name == rows_key(sets, config("a"), 42, letters.digest)
    assert sorted(path.name for path in place.iterdir()) == ["eval.safetensors", "train.safetensors"]
    os.utime(place, (1, 1))
    found = find_tokenised(request, tmp_path / "cache")
    assert found.from_cache and not made.from_cache and place.stat().st_mtime > 1, "it was used now"
    assert (found.train.rows, found.held_out.rows) == (5, 1)


def test_without_a_set_nothing_is_tokenised(tmp_path, letters):
    with pytest.raises(StudioError) as caught:
        tokenise_rows(RowsRequest(tmp_path, letters, DataConfig()), tmp_path / "cache")
    assert str(caught.value) == "field 'data.sources': No data set is chosen. Import a file and choose its set."


def test_a_full_disk_is_a_sentence_and_leaves_nothing(sets, letters, tmp_path, monkeypatch):
    request = RowsRequest(sets, letters, config("a"))

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(token_cache, "_write_side", full)
        with pytest.raises(StudioError, match=r"The tokens cannot be written: No space left on device\."):
            tokenise_rows(request, tmp_path / "cache")
    assert list((tmp_path / "cache" / "tokens").iterdir()) == []
    with monkeypatch.context() as patched:
        patched.setattr(token_cache, "_make", lambda *arguments: None)
        with pytest.raises(StudioError, match="The tokens cannot be kept"):
            tokenise_rows(request, tmp_path / "cache")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StudioError, match="Nothing can be written here: "):
        tokenise_rows(request, tmp_path / "file")


def test_the_oldest_go_and_stages_only_after_a_day(tmp_path, monkeypatch):
    monkeypatch.setattr(token_cache, "KEPT", 2)
    for name, age in (("new", 10), ("mid", 20), ("old", 30), (".stage", 86_400), (".stale", 86_401)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
        os.utime(tmp_path / name, (1_000_000 - age,) * 2)
    _prune(tmp_path, lambda: 1_000_000.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".stage", "mid", "new"]
    _prune(tmp_path / "nowhere")
