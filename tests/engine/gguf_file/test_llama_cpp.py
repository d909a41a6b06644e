"""llama.cpp asked about a file: refused where it reads other tokens or never ends, and else a sentence."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from qlora_studio.core.errors import StudioError
from qlora_studio.engine.exporters.comparison import GREEDY, Answer
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


class Pretended:
    """xllamacpp as far as it is asked: its settings, a server, and what it hears and says."""

    def __init__(self, error=None, content="It says.", reason="stop") -> None:
        self.error, self.content, self.reason, self.heard = error, content, reason, []

    def CommonParams(self):
        self.settings = SimpleNamespace(model=SimpleNamespace(), sampling=SimpleNamespace())
        return self.settings

    def Server(self, settings):
        if self.error:
            raise self.error
        return SimpleNamespace(handle_chat_completions=self.answer)

    def answer(self, request):
        self.heard.append(request)
        message = {} if self.content is None else {"content": self.content}
        return {"choices": [{"message": message, "finish_reason": self.reason}], "usage": {"prompt_tokens": 7}}


@pytest.mark.parametrize(
    ("content", "reason", "answer"),
    [
        ("It says.", "stop", LlamaCppAnswer("It says.", 7, True)),
        ("It says", "length", LlamaCppAnswer("It says", 7, False)),
        (None, "stop", LlamaCppAnswer("", 7, True)),
    ],
)
def test_llama_cpp_is_asked_each_prompt_without_chance(monkeypatch, tmp_path, content, reason, answer):
    there = Pretended(content=content, reason=reason)
    monkeypatch.setitem(sys.modules, "xllamacpp", there)
    assert llama_cpp.ask_llama_cpp(tmp_path / "x.gguf", ["one", "two"]) == [answer, answer]
    assert there.heard == [
        {
            "messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": GREEDY.max_new_tokens,
            "reasoning_format": "none",
        }
        for prompt in ("one", "two")
    ]  # fmt: skip
    settings = there.settings
    assert (settings.model.path, settings.n_ctx, settings.n_predict) == (str(tmp_path / "x.gguf"), 4096, GREEDY.max_new_tokens)  # fmt: skip
    assert (settings.warmup, settings.sampling.temp) == (False, 0.0)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("bad magic\nmore"), "llama.cpp refuses the file: bad magic."),
        (ValueError(), "llama.cpp refuses the file: ValueError."),
    ],
)
def test_a_file_that_llama_cpp_does_not_load_is_refused_with_what_it_says(monkeypatch, tmp_path, error, message):
    monkeypatch.setitem(sys.modules, "xllamacpp", Pretended(error))
    with pytest.raises(StudioError) as caught:
        llama_cpp.ask_llama_cpp(tmp_path / "x.gguf", ["one"])
    assert caught.value.problems[0].message == message


@pytest.mark.parametrize("there", [True, False])
def test_llama_cpp_is_there_where_its_package_is(monkeypatch, there):
    asked = []
    monkeypatch.setattr(
        llama_cpp.importlib.util, "find_spec", lambda name: asked.append(name) or (object() if there else None)
    )
    assert llama_cpp.is_installed() is there and asked == ["xllamacpp"]


HALF = GREEDY.max_new_tokens // 2


@pytest.mark.parametrize(
    ("answers", "stopped", "sentence"),
    [
        ([(HALF, True)] * 2, [False] * 2, "ends 0 of 2 answers"),
        ([(HALF + 1, True)] * 3, [False] * 3, "ends 0 of 3 answers"),
        ([(HALF, False)] * 3, [False] * 3, "ends 0 of 0 answers"),
        ([(HALF, True)] * 3, [False, True, False], "ends 1 of 3 answers"),
        ([(HALF, True)] * 3, [False] * 3, None),
    ],
    ids=["too few", "long ones", "the chat ran on as well", "one ends", "three short ones run on"],
)
def test_a_missing_end_is_a_fault_where_three_short_answers_all_run_on(
    monkeypatch, tmp_path, answers, stopped, sentence
):
    said = [Answer("prompt", (1, 2, 3), (4,) * length, ended) for length, ended in answers]
    found = [LlamaCppAnswer("x", 3, one) for one in stopped]
    monkeypatch.setattr(llama_cpp, "ask_llama_cpp", lambda path, prompts: found)
    if sentence is None:
        with pytest.raises(StudioError, match="does not come to an end where the chat did"):
            compare_with_llama_cpp(tmp_path, said)
    else:
        assert compare_with_llama_cpp(tmp_path, said) == (
            f"llama.cpp loads the file, writes the prompts in the tokens of training and {sentence} where the chat came "
            "to an end."
        )
