"""What a chat's pipe writes and reads, message by message; no process is started."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from qlora_studio.core.chat import ChatPiece, ChatRequest, ChatTurn, StopAnswer
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import ChatJobRequest
from qlora_studio.runs import chat
from qlora_studio.runs.chat import ChatPipe
from qlora_studio.runs.folder import create_job

ASKED = ChatRequest(turns=(ChatTurn(role="user", content="Hi"),))


class Worker:
    """Says these pieces, and writes down what it is told and how it was started."""

    def __init__(self, *pieces, code=None):
        self.stdout = io.BytesIO(b"".join(piece.model_dump_json().encode() + b"\n" for piece in pieces))
        self.stdin, self.code, self.options, self.waited = io.BytesIO(), code, {}, []

    def poll(self):
        return self.code

    def wait(self, seconds):
        self.waited.append(seconds)

    def told(self):
        return [json.loads(line) for line in self.stdin.getvalue().splitlines()]


@pytest.fixture
def open_pipe(tmp_path, monkeypatch):
    def open_it(worker, *command, **options):
        def popen(command, **given):
            worker.options.update(given, command=command)
            given["stderr"].write(b"started\n")
            return worker

        monkeypatch.setattr(chat.subprocess, "Popen", popen)
        return ChatPipe(create_job(tmp_path, "chat", ChatJobRequest(run=Path("/nowhere"))), *command, **options)

    return open_it


def piece(text, **more):
    return ChatPiece(text=text, **more)


def messages(*sent):
    return [json.loads(one.model_dump_json()) for one in sent]


def test_a_chat_worker_is_started_with_pipes_its_log_its_card_and_a_session_of_its_own(open_pipe, monkeypatch):
    worker = Worker()
    pipe = open_pipe(worker, card="GPU-2")
    options = worker.options
    assert options["command"] == [sys.executable, "-m", "qlora_studio.worker", str(pipe.folder.path)]
    assert (options["stdin"], options["stdout"], options["cwd"]) == (subprocess.PIPE, subprocess.PIPE, pipe.folder.path)
    assert options["env"]["CUDA_VISIBLE_DEVICES"] == "GPU-2" and options["start_new_session"] is True
    assert pipe.folder.log.read_text() == "started\n" and pipe.lives
    other = Worker(code=0)
    assert not open_pipe(other, ["other"]).lives and other.options["command"] == ["other"]


def test_an_answer_is_read_to_its_last_piece_and_no_further(open_pipe):
    pieces = [piece("a"), piece("ab", done=True), piece("next", done=True)]
    worker = Worker(*pieces)
    pipe = open_pipe(worker)
    assert list(pipe.ask(ASKED)) == pieces[:2] and worker.told() == messages(ASKED)
    assert not pipe.busy.locked()
    assert list(pipe.ask(ASKED)) == pieces[2:] and worker.told() == messages(ASKED, ASKED)


def test_what_nobody_reads_of_an_answer_is_stopped_and_read_away(open_pipe):
    for ends in (piece("", done=True), ChatPiece(error="Odd.")):
        worker = Worker(piece("a"), piece("ab"), ends, piece("next", done=True))
        pipe = open_pipe(worker)
        answer = pipe.ask(ASKED)
        next(answer)
        answer.close()
        assert worker.told() == messages(ASKED, StopAnswer()) and not pipe.busy.locked()
        assert [one.text for one in pipe.ask(ASKED)] == ["next"]


def test_an_answer_of_a_worker_that_is_gone_is_not_stopped(open_pipe):
    worker = Worker(piece("a"), piece("ab"))
    answer = open_pipe(worker).ask(ASKED)
    next(answer)
    worker.code = 1
    answer.close()
    assert worker.told() == messages(ASKED)


def test_an_error_ends_an_answer_and_the_end_of_the_worker_is_one_with_its_last_words(open_pipe):
    worker = Worker(ChatPiece(error="Not so.", hint="So."), piece("next", done=True))
    pipe = open_pipe(worker)
    with pytest.raises(StudioError) as failed:
        list(pipe.ask(ASKED))
    assert (failed.value.message, failed.value.hint) == ("Not so.", "So.") and worker.told() == messages(ASKED)
    assert [one.text for one in pipe.ask(ASKED)] == ["next"]
    worker.code = 1
    with pytest.raises(StudioError) as failed:
        list(pipe.ask(ASKED))
    assert failed.value.message == "The chat worker has ended."
    assert failed.value.hint == "Open the chat again. Its log says: started"


def test_a_stop_is_sent_only_while_an_answer_is_written_by_a_worker_that_lives(open_pipe):
    worker = Worker(piece("a"), piece("a", done=True))
    pipe = open_pipe(worker)
    pipe.stop()
    assert worker.told() == []
    answer = pipe.ask(ASKED)
    next(answer)
    pipe.stop()
    assert worker.told() == messages(ASKED, StopAnswer())
    worker.code = 0
    pipe.stop()
    assert len(worker.told()) == 2
    list(answer)


def test_what_is_told_is_on_its_way_at_once_and_a_pipe_that_is_closed_is_an_end(open_pipe):
    flushed = []
    worker = Worker(piece("a", done=True))
    pipe = open_pipe(worker)
    worker.stdin = SimpleNamespace(write=lambda data: flushed.append(data), flush=lambda: flushed.append("flushed"))
    list(pipe.ask(ASKED))
    assert flushed == [ASKED.model_dump_json().encode() + b"\n", "flushed"]

    def broken(data):
        raise BrokenPipeError

    worker.stdin = SimpleNamespace(write=broken)
    with pytest.raises(StudioError, match="The chat worker has ended"):
        list(pipe.ask(ASKED))


def test_a_chat_that_is_closed_waits_a_while_for_its_worker(open_pipe):
    worker = Worker()
    pipe = open_pipe(worker)
    pipe.close()
    assert worker.stdin.closed and worker.waited == [chat.CLOSE_SECONDS]
    worker.stdin = SimpleNamespace(close=lambda: (_ for _ in ()).throw(BrokenPipeError))
    pipe.close()
    worker.stdin = None
    pipe.close()
    assert len(worker.waited) == 3


def test_a_piece_that_is_none_ends_the_answer_and_what_follows_of_it_is_read_away(open_pipe):
    worker = Worker(piece("rest", done=True), piece("next", done=True))
    worker.stdout = io.BytesIO(b"odd\n" + worker.stdout.getvalue())
    pipe = open_pipe(worker)
    with pytest.raises(ValidationError):
        list(pipe.ask(ASKED))
    assert worker.told() == messages(ASKED, StopAnswer())
    assert [one.text for one in pipe.ask(ASKED)] == ["next"]
