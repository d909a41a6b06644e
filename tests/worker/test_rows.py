"""What a job that tokenises changes about its process, and puts back."""

import os
import sys

import pytest

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
