"""What a job that tokenises says and keeps, and what it changes about its process and puts back."""

import os
import sys
from types import SimpleNamespace

import pytest

from qlora_studio.core import events as ev
from qlora_studio.core.jobs import TrainRequest
from qlora_studio.data.sets.prepare import RowsRequest
from qlora_studio.engine.tokenizer import load_tokenizer
from qlora_studio.worker import rows
from qlora_studio.worker.rows import MOST_PROCESSES, all_cores, processes


def test_threads_are_let_loose_for_as_long_as_rows_are_tokenised(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    before = sys.getswitchinterval()
    with pytest.raises(KeyError), all_cores():
        assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
        assert sys.getswitchinterval() == pytest.approx(before / 10)
        raise KeyError
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    assert sys.getswitchinterval() == pytest.approx(before)


def test_there_is_a_process_for_each_core_where_this_one_can_be_forked(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5}, raising=False)
    assert processes() == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert processes() == MOST_PROCESSES
    monkeypatch.setattr(sys, "platform", "darwin")
    assert processes() == 1


def test_a_setting_that_nobody_made_is_gone_afterwards(monkeypatch):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    with all_cores():
        assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
    assert "TOKENIZERS_PARALLELISM" not in os.environ


def test_how_long_the_rest_takes_is_said_as_soon_as_a_row_is_done_and_their_number_is_known(small, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(rows.time, "monotonic", lambda: now[0])
    done = small.context(TrainRequest())
    watch = rows.watch(done.context)
    now[0] = 106.0
    for count, total in ((0, 8), (2, 8), (8, 8), (3, 0)):
        watch.advanced(count, total)
    assert done.events == [
        ev.Advanced(done=0, total=8, unit="rows"), ev.Advanced(done=2, total=8, unit="rows", seconds_left=18.0),
        ev.Advanced(done=8, total=8, unit="rows", seconds_left=0.0), ev.Advanced(done=3, total=0, unit="rows"),
    ]  # fmt: skip
    assert not watch.stopped()
    for request in ("save", "pause", "stop"):
        done.folder.ask(request)
        assert watch.stopped() == (request != "save")


def test_both_sides_are_tokenised_once_and_the_second_time_that_is_said(small, monkeypatch):
    tokenizer = load_tokenizer(small.home.models / "tiny")
    monkeypatch.setattr(rows, "processes", lambda: 1)
    done = small.context(TrainRequest())
    alone = rows.held_out(done.context, small.config, tokenizer)
    assert not (small.home.cache / "tokens").exists() and len(alone.examples) == 4 and done.notes() == []
    made = [rows.tokenise(done.context, small.config, tokenizer) for _ in range(2)]
    assert [one.from_cache for one in made] == [False, True]
    assert done.notes() == ["These rows were tokenised before; their tokens are used again."]
    assert [(len(one.train.examples), len(one.held_out.examples)) for one in made] == [(16, 4)] * 2
    monkeypatch.setattr(rows, "prepare_sources", lambda *_, **__: pytest.fail("it tokenised again"))
    kept = rows.held_out(done.context, small.config, tokenizer)
    assert [one.input_ids for one in kept.examples] == [one.input_ids for one in alone.examples]


def test_rows_are_read_from_where_a_job_says_and_from_the_home_otherwise(small, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(rows, "tokenise_rows", lambda *given: asked.append(given) or SimpleNamespace(from_cache=False))
    monkeypatch.setattr(rows, "processes", lambda: 3)
    config, done = small.config.replace({"optim.seed": 11}), small.context(TrainRequest())
    for place in (None, tmp_path):
        rows.tokenise(done.context, config, "tokenizer", place)
    for (request, cache, _), place in zip(asked, (small.home.datasets, tmp_path), strict=True):
        assert request == RowsRequest(place, "tokenizer", config.data, 11, 3) and cache == small.home.cache
