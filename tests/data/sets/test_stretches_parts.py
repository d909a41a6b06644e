"""How the rows of one side are cut into stretches, and how far all processes together are."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from qlora_studio.core.config import DataConfig, DataSource
from qlora_studio.data.render.layout import LayoutMistaken
from qlora_studio.data.sets import stretches
from qlora_studio.data.sets.importer import import_file
from qlora_studio.data.sets.prepare import QUIET, Progress, RowsRequest, Watch
from qlora_studio.data.sets.sides import Sides
from qlora_studio.data.sets.token_table import TokenTable, TokenWriter

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="jobs are forked on Linux alone")


@pytest.fixture
def request_rows(tmp_path, letters):
    """Thirty rows, none held out, for three processes."""
    rows = [{"prompt": f"p{number}", "completion": "yes"} for number in range(30)]
    (tmp_path / "one.jsonl").write_text("\n".join(map(json.dumps, rows)))
    import_file(tmp_path / "one.jsonl", tmp_path / "sets")
    config = DataConfig(sources=(DataSource(name="one"),), eval_share=0)
    return RowsRequest(tmp_path / "sets", letters, config, processes=3)


@pytest.fixture
def work(tmp_path, request_rows):
    with stretches._Stretches(request_rows, "train", tmp_path / "parts", 30) as made:
        yield made


@pytest.mark.parametrize(
    ("rows", "stretch_rows", "count"),
    [
        (1, 2048, 1),
        (2048, 2048, 1),
        (2049, 2048, 2),
        (8192, 2048, 4),
        (2048 * 4096, 2048, 4096),
        (2048 * 4096 + 1, 2049, 4095),
        (3000 * 4096, 3000, 4096),
    ],
)
def test_stretches_are_of_2048_rows_unless_there_were_more_than_4096_of_them(
    tmp_path, request_rows, rows, stretch_rows, count
):
    made = stretches._Stretches(request_rows, "train", tmp_path / "parts", rows)
    assert (made.stretch_rows, made.count) == (stretch_rows, count)


def progress_of(work):
    seen = []
    work._look(SimpleNamespace(look=seen.append))
    return seen


def test_the_rows_of_all_processes_are_added_and_the_last_is_kept_for_the_end(work):
    assert progress_of(work) == [0]
    for slot, rows in ((0, 3), (2, 5), (0, 4), (1, 16)):
        work._note_done(slot, rows)
    assert progress_of(work) == [28]
    work._note_done(1, 1)
    assert progress_of(work) == [29]
    work._note_done(2, 2)
    assert progress_of(work) == [29], "30 are said when they are put together"


def test_a_helper_without_its_parent_ends_itself(work, monkeypatch):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(os, "getppid", lambda: os.getpid())
    work._advance_helper(1, 6)
    assert (ended, progress_of(work)) == ([], [6])
    monkeypatch.setattr(os, "getppid", lambda: 1)
    work._advance_helper(1, 6)
    assert (ended, progress_of(work)) == ([1], [12])


@pytest.mark.parametrize(("code", "mistaken"), [(0, False), (1, False), (2, False), (3, True), (4, False)])
def test_a_helper_that_has_ended_is_forgotten_and_its_code_says_whether_a_way_was_a_mistake(work, code, mistaken):
    helper = os.fork()
    if helper == 0:
        os._exit(code)
    os.waitid(os.P_PID, helper, os.WEXITED | os.WNOWAIT)
    work.helpers = [helper]
    if mistaken:
        with pytest.raises(LayoutMistaken):
            progress_of(work)
    else:
        assert progress_of(work) == [0]
    assert work.helpers == []


@pytest.mark.parametrize(
    ("least", "processes", "shared"), [(30, 3, True), (31, 3, False), (30, 2, True), (30, 1, False)]
)
def test_rows_are_shared_from_the_least_number_on_where_there_are_processes(
    tmp_path, request_rows, monkeypatch, least, processes, shared
):
    def refuse():
        raise BlockingIOError

    monkeypatch.setattr(stretches, "LEAST_ROWS", least)
    monkeypatch.setattr(stretches, "STRETCH_ROWS", 7)
    monkeypatch.setattr(os, "fork", refuse)
    writer, sides = TokenWriter(tmp_path / "table"), Sides()
    made = stretches.write_stretches(replace(request_rows, processes=processes), "train", writer, sides, QUIET)
    writer.close()
    assert (made.rows if made else None) == (30 if shared else None)
    assert not (tmp_path / "table.stretches").exists()


def test_each_stretch_is_removed_when_it_is_put_together(tmp_path, request_rows, monkeypatch):
    def refuse():
        raise BlockingIOError

    monkeypatch.setattr(stretches, "STRETCH_ROWS", 7)
    monkeypatch.setattr(os, "fork", refuse)
    folder, writer, sides, said = tmp_path / "parts", TokenWriter(tmp_path / "table"), Sides(), []
    (folder / "2").mkdir(parents=True)
    (folder / "2" / "ids").write_bytes(b"left by a helper that was killed")
    with stretches._Stretches(request_rows, "train", folder, 30) as work:
        work.make_all(Progress(Watch(lambda *values: said.append(values)), 30))
        assert said[-1] == (30, 30)
        assert sorted(part.name for part in folder.iterdir()) == ["0", "1", "2", "3", "4"]
        made = work.collect(writer, sides)
        assert list(folder.iterdir()) == []
        pipe = work.untaken
    with pytest.raises(OSError):
        os.fstat(pipe)
    assert (made.rows, len(made.lengths), len(sides.trained), sides.held_out) == (30, 30, 30, {})
    writer.finish(tmp_path / "t.safetensors", {})
    writer.close()
    assert [one.source.line for one in TokenTable(tmp_path / "t.safetensors")] == list(range(1, 31))


@pytest.mark.parametrize("before", [None, "true"])
def test_the_tokenizers_threads_are_off_meanwhile(monkeypatch, before):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    if before:
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", before)
    with stretches._one_thread_each():
        assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    assert os.environ.get("TOKENIZERS_PARALLELISM") == before
