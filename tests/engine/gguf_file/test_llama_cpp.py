"""llama.cpp asked about a file: refused where it reads other tokens or never ends, and else a sentence."""

from __future__ import annotations

import pytest

from qlora_studio.core.errors import StudioError
from qlora_studio.engine.exporters.comparison import Answer
from qlora_studio.engine.gguf_file import llama_cpp
from qlora_studio.engine.gguf_file.llama_cpp import LlamaCppAnswer, compare_with_llama_cpp

ASKED = [Answer(f"prompt {number}", (1, 2, 3), (4, 5), True) for number in range(3)]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([LlamaCppAnswer("x", 3, False)] * 3, "does not come to an end where the chat did"),
        ([LlamaCppAnswer("x", 4, True)] * 3, "writes a prompt in 4 tokens where training wrote 3"),
    ],
)
def test_a_file_that_llama_cpp_reads_otherwise_is_refused(monkeypatch, tmp_path, answers, message):
    monkeypatch.setattr(llama_cpp, "ask_llama_cpp", lambda path, prompts: answers)
    with pytest.raises(StudioError, match=message):
        compare_with_llama_cpp(tmp_path, ASKED)


def test_one_answer_that_runs_on_is_counted_and_no_fault(monkeypatch, tmp_path):
    answers = [LlamaCppAnswer("x", 3, True), LlamaCppAnswer("x", 3, False), LlamaCppAnswer("x", 3, True)]
    monkeypatch.setattr(llama_cpp, "ask_llama_cpp", lambda path, prompts: answers)
    assert "ends 2 of 3 answers" in compare_with_llama_cpp(tmp_path, ASKED)
