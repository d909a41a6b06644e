"""The pipe to a chat worker: one question out, pieces back, stoppable in between, and what a dead worker leaves."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from qlora_studio.core.chat import ChatRequest, ChatTurn
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import ChatJobRequest
from qlora_studio.runs.chat import ChatPipe
from qlora_studio.runs.folder import create_job

WORKER = """
import sys, threading, queue
from qlora_studio.core.chat import CHAT_MESSAGES, ChatPiece, StopAnswer
messages = queue.Queue()
def listen():
    for line in sys.stdin:
        messages.put(CHAT_MESSAGES.validate_json(line))
    messages.put(None)
threading.Thread(target=listen, daemon=True).start()
def send(piece):
    print(piece.model_dump_json(), flush=True)
while (message := messages.get()) is not None:
    if isinstance(message, StopAnswer):
        continue
    words = message.turns[-1].content.split()
    if words == ["die"]:
        print("Killed: out of luck", file=sys.stderr, flush=True)
        sys.exit(3)
    if words == ["fail"]:
        send(ChatPiece(error="There is not enough memory.", hint="Shorten it."))
        continue
    for number in range(1, len(words) + 1):
        send(ChatPiece(text=" ".join(words[:number]), tokens=number))
        if words[0] == "endless":
            assert isinstance(messages.get(), StopAnswer)
            words = words[:number]
            break
    send(ChatPiece(text=" ".join(words), tokens=len(words), done=True))
"""
"""Answers with the question, word by word; `endless` waits for a stop after its first word."""


@pytest.fixture
def pipe(tmp_path):
    job = create_job(tmp_path, "chat", ChatJobRequest(run=Path("/nowhere")))
    made = ChatPipe(job, [sys.executable, "-c", WORKER])
    yield made
    made.close()
    assert not made.lives


def ask(text: str) -> ChatRequest:
    return ChatRequest(turns=(ChatTurn(role="user", content=text),))


def test_an_answer_grows_and_ends_with_done(pipe):
    for text in ("one two", "three"):
        pieces = list(pipe.ask(ask(text)))
        assert [piece.text for piece in pieces if not piece.done] == [
            " ".join(text.split()[:number]) for number in range(1, len(text.split()) + 1)
        ]
        assert pieces[-1].done and pieces[-1].text == text


def test_a_stop_ends_the_answer_and_keeps_what_is_there(pipe):
    answer = pipe.ask(ask("endless words and more"))
    assert next(answer).text == "endless"
    pipe.stop()
    assert [piece.text for piece in answer][-1] == "endless"
    assert list(pipe.ask(ask("again")))[-1].text == "again"


def test_a_stop_without_a_question_is_not_sent(pipe):
    pipe.stop()  # it would end the next answer, whose worker takes the first message after its first word for it
    answer = pipe.ask(ask("endless words"))
    assert next(answer).text == "endless"
    pipe.stop()
    assert [piece.done for piece in answer] == [True]


def test_an_error_of_the_worker_is_a_sentence_and_the_chat_goes_on(pipe):
    with pytest.raises(StudioError) as failed:
        list(pipe.ask(ask("fail")))
    assert (failed.value.message, failed.value.hint) == ("There is not enough memory.", "Shorten it.")
    assert list(pipe.ask(ask("better")))[-1].text == "better"


def test_a_worker_that_dies_is_said_with_the_end_of_its_log(pipe):
    with pytest.raises(StudioError, match=r"The chat worker has ended\..*Killed: out of luck"):
        list(pipe.ask(ask("die")))
    pipe.process.wait(5)
    assert not pipe.lives
    with pytest.raises(StudioError, match="The chat worker has ended"):
        list(pipe.ask(ask("anyone there")))


def test_two_questions_at_once_wait_for_each_other(pipe):
    answers: dict[str, str] = {}

    def question(text: str) -> None:
        answers[text] = list(pipe.ask(ask(text)))[-1].text

    threads = [threading.Thread(target=question, args=(f"question number {number}",)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert answers == {f"question number {number}": f"question number {number}" for number in range(5)}


def test_an_answer_that_nobody_reads_to_its_end_does_not_stand_in_the_next(pipe):
    answer = pipe.ask(ask("endless words that nobody reads"))
    next(answer)
    answer.close()
    assert [piece.text for piece in pipe.ask(ask("next one"))] == ["next", "next one", "next one"]


def test_a_worker_that_does_not_leave_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("qlora_studio.runs.chat.CLOSE_SECONDS", 0.3)
    job = create_job(tmp_path, "chat", ChatJobRequest(run=Path("/nowhere")))
    pipe = ChatPipe(job, [sys.executable, "-c", "import time; time.sleep(60)"])
    pipe.close()
    assert pipe.process.wait(5) == -9
