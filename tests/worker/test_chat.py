"""The chat's worker when memory runs out: it tries once more with what was held given back, and the chat goes on."""

from __future__ import annotations

import io
import json
import os
import queue
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from qlora_studio.core import events as ev
from qlora_studio.core.chat import ChatPiece, ChatRequest, ChatTurn, StopAnswer
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import ChatJobRequest, ChatReport
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


def begin(tmp_path, monkeypatch, live, lines):
    """A chat over these lines of standard input; its last event, its pieces and its phases."""
    out, phases, prepared = io.StringIO(), [], []
    monkeypatch.setattr(chat, "open_run", live if callable(live) else lambda *_: live)
    monkeypatch.setattr(chat, "prepare_answers", lambda *given: prepared.append(given))
    monkeypatch.setattr(chat, "_take_stdout", lambda: out)
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
    folder = create_job(tmp_path / "chats", "chat", ChatJobRequest(run=Path("/nowhere"), checkpoint="best"))
    context = Context(folder, lambda event: phases.append(event.phase), os.getppid(), home=Home(tmp_path))
    try:
        return chat.run(context), out, phases, prepared
    except StudioError as error:
        return error, out, phases, prepared


def read(out):
    return [json.loads(line) for line in out.getvalue().splitlines()]


def ask(text):
    return ChatRequest(turns=(ChatTurn(role="user", content=text),)).model_dump_json()


def test_a_run_that_cannot_be_opened_is_said_to_whoever_waits_for_an_answer(tmp_path, monkeypatch):
    asked = []

    def refuse(context, folder, checkpoint):
        asked.append((folder.path, checkpoint))
        raise StudioError("It is damaged.", "Train again.")

    error, out, phases, _ = begin(tmp_path, monkeypatch, refuse, [ask("one")])
    assert isinstance(error, StudioError) and phases == [] and asked == [(Path("/nowhere"), "best")]
    (piece,) = read(out)
    assert (piece["error"], piece["hint"]) == ("It is damaged.", "Train again.")


def test_a_request_that_is_wrong_is_said_and_the_chat_goes_on(tmp_path, monkeypatch):
    live = Live(0)
    right = live.answer

    def answer(turns, side, sampling, stopped):
        if turns[-1].content == "wrong":
            raise StudioError("Not so.", "So.")
        return right(turns, side, sampling, stopped)

    live.answer = answer
    last, out, phases, prepared = begin(tmp_path, monkeypatch, live, [ask("wrong"), "", ask("right")])
    pieces = read(out)
    assert (pieces[0]["error"], pieces[0]["hint"]) == ("Not so.", "So.") and live.released == 0
    assert [(piece["text"], piece["done"], piece["tokens"]) for piece in pieces[1:]] == [
        ("Hal", False, 1), ("Hallo right", False, 2), ("Hallo right", True, 2),
    ]  # fmt: skip
    assert pieces[-1]["prompt"] == "prompt" and pieces[-1]["tokens_per_second"] > 0
    assert phases == ["ready"] and prepared == [(live.model, live.device)]
    assert last == ev.Finished(report=ChatReport())


def test_any_other_error_ends_the_chat(tmp_path, monkeypatch):
    live = Live(0)
    live.answer = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        begin(tmp_path, monkeypatch, live, [ask("one")])


def test_a_stop_stands_until_the_next_question(monkeypatch):
    def listen(*lines):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
        requests, stop = queue.Queue(), threading.Event()
        chat._listen(requests, stop)
        return [requests.get_nowait() for _ in range(requests.qsize())], stop.is_set()

    stop = StopAnswer().model_dump_json()
    one = ChatRequest.model_validate_json(ask("one"))
    assert listen(ask("one"), stop) == ([one, None], True)
    assert listen(stop, " ", ask("one")) == ([one, None], False)
    assert listen() == ([None], False)


def test_answers_go_out_alone_and_what_libraries_print_goes_to_the_log(capfd):
    before = os.dup(1)
    try:
        out = chat._take_stdout()
        os.write(1, b"a library\n")
        chat._send(out, ChatPiece(text="\u00e4"))
        out.close()
    finally:
        os.dup2(before, 1)
        os.close(before)
    said = capfd.readouterr()
    assert said.err == "a library\n" and json.loads(said.out)["text"] == "\u00e4" and said.out.endswith("}\n")


def test_the_speed_of_an_answer_is_its_tokens_by_the_time_it_took(monkeypatch):
    for times, speed in ((iter([50.0, 54.0]), 0.5), (iter([50.0, 50.0]), 2e9)):
        monkeypatch.setattr(chat.time, "monotonic", lambda times=times: next(times))
        out = io.StringIO()
        chat._answer(Live(0), ChatRequest.model_validate_json(ask("one")), threading.Event(), out)
        assert [piece["tokens_per_second"] for piece in read(out)][-1] == pytest.approx(speed)


def test_a_piece_is_on_its_way_as_soon_as_it_is_said(tmp_path):
    with (tmp_path / "out").open("w", encoding="utf-8") as out:
        chat._send(out, ChatPiece(text="Hal"))
        assert json.loads((tmp_path / "out").read_text())["text"] == "Hal"
