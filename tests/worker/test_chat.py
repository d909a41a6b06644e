"""The chat's worker when memory runs out: it tries once more with what was held given back, and the chat goes on."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from qlora_studio.core.chat import ChatRequest, ChatTurn
from qlora_studio.core.jobs import ChatJobRequest
from qlora_studio.home import Home
from qlora_studio.runs.folder import create_job
from qlora_studio.worker import chat
from qlora_studio.worker.context import Context


class Live:
    """A loaded run that runs out of memory so many times before it answers."""

    model = device = None

    def __init__(self, failures: int) -> None:
        self.failures, self.released = failures, 0
        self.device = SimpleNamespace(accelerator=SimpleNamespace(release=self._release))
        self.tokenizer = SimpleNamespace(decode=lambda ids: "prompt")

    def _release(self) -> None:
        self.released += 1

    def prompt(self, turns):
        return [1]

    def answer(self, turns, side, sampling, stopped):
        yield "Hal"
        if self.failures:
            self.failures -= 1
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
        yield f"Hallo {turns[-1].content}"


@pytest.mark.parametrize(
    ("failures", "ends"),
    [(1, ["Hallo one", "Hallo two"]), (2, ["There is not enough memory for this answer.", "Hallo two"])],
    ids=["once", "twice"],
)
def test_an_answer_that_runs_out_of_memory_is_tried_again_and_the_next_question_is_answered(
    tmp_path, monkeypatch, failures, ends
):
    live, out = Live(failures), io.StringIO()
    requests = [ChatRequest(turns=(ChatTurn(role="user", content=text),)) for text in ("one", "two")]
    monkeypatch.setattr(chat, "open_run", lambda *_: live)
    monkeypatch.setattr(chat, "prepare_answers", lambda *_: None)
    monkeypatch.setattr(chat, "_take_stdout", lambda: out)
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(one.model_dump_json() + "\n" for one in requests)))
    folder = create_job(tmp_path / "chats", "chat", ChatJobRequest(run=Path("/nowhere")))
    chat.run(Context(folder, lambda event: None, os.getppid(), home=Home(tmp_path)))
    pieces = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [piece["error"] or piece["text"] for piece in pieces if piece["done"] or piece["error"]] == ends
    assert live.released == 1
