"""What a job that tokenises changes about its process, and puts back."""

import os
import sys

import pytest

from qlora_studio.worker.rows import all_cores


def test_threads_are_let_loose_for_as_long_as_rows_are_tokenised(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    before = sys.getswitchinterval()
    with pytest.raises(KeyError), all_cores():
        assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
        assert sys.getswitchinterval() == pytest.approx(before / 10)
        raise KeyError
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    assert sys.getswitchinterval() == pytest.approx(before)
