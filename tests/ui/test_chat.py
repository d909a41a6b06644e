"""The open chat: both sides, stop, errors, and what a reload finds."""

import time

import pytest

from qlora_studio.core.chat import ChatTurn, Sampling
from qlora_studio.core.errors import StudioError
from qlora_studio.home import Home
from qlora_studio.ui.server.chat import SIDES, ChatSession
from qlora_studio.ui.views.chat import Message
from tests.ui.fakes import StudioWithChat


@pytest.fixture
def chat(tmp_path):
    return ChatSession(StudioWithChat(Home(tmp_path)))


def until(true):
    end = time.monotonic() + 5
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    assert true()


def wait(chat):
    until(lambda: not chat.busy)


def ask(chat, message="hello there", run="first", sides=SIDES, system=""):
    chat.ask(run, message, system, sides, Sampling(seed=7))


def slowly(chat):
    """The chat with a worker that waits after every word."""
    chat.choose("first")
    chat.pipe = chat.studio.chats.open("first")
    chat.pipe.may_go.clear()


def answers_of(chat, side):
    return [(turn.role, turn.content) for turn in chat.history.turns(side)]


def test_both_sides_answer_one_after_the_other_with_the_same_settings(chat):
    ask(chat)
    wait(chat)
    requests = chat.studio.pipes[0].requests
    assert [request.side for request in requests] == ["base", "tuned"]
    assert {request.sampling for request in requests} == {Sampling(seed=7)}
    assert answers_of(chat, "base") == [("user", "hello there"), ("assistant", "base: hello there")]
    assert answers_of(chat, "tuned") == [("user", "hello there"), ("assistant", "tuned: hello there")]
    last = chat.history.last("tuned")
    assert (last.prompt, last.tokens_per_second) == ("<exact>", 9.0)


def test_the_next_question_carries_what_was_said_and_the_system_message_once(chat):
    ask(chat, system="Be kind.", sides=("tuned",))
    wait(chat)
    ask(chat, "again", system="Be rude.", sides=("tuned",))
    wait(chat)
    assert chat.studio.pipes[0].requests[1].turns == (
        ChatTurn(role="system", content="Be kind."),
        ChatTurn(role="user", content="hello there"),
        ChatTurn(role="assistant", content="tuned: hello there"),
        ChatTurn(role="user", content="again"),
    )
    assert chat.history.messages("base") == []
    assert [message.role for message in chat.history.messages("tuned")] == ["user", "assistant"] * 2


def test_a_growing_answer_can_be_read_by_anybody_who_looks(chat):
    slowly(chat)
    ask(chat, "one two three", sides=("tuned",))
    until(lambda: chat.history.last("tuned").text == "tuned:")
    assert chat.history.messages("tuned")[-1] == Message("assistant", "tuned:", growing=True)
    with pytest.raises(StudioError, match="An answer is being written"):
        ask(chat)
    chat.stop()
    wait(chat)
    assert answers_of(chat, "tuned")[-1] == ("assistant", "tuned:")
    assert chat.history.messages("tuned")[-1] == Message("assistant", "tuned:", "stopped")


def test_stopping_the_first_side_leaves_the_second_unasked_and_both_with_the_same_history(chat):
    ask(chat, "before")
    wait(chat)
    slowly(chat)
    ask(chat, "one two three")
    until(lambda: chat.history.last("base").begun)
    chat.stop()
    wait(chat)
    assert answers_of(chat, "base") == [("user", "before"), ("assistant", "base: before")]
    assert answers_of(chat, "tuned") == [("user", "before"), ("assistant", "tuned: before")]
    assert chat.history.messages("base")[2:] == [
        Message("user", "one two three"),
        Message("assistant", "base:", "stopped; not part of the conversation"),
    ]
    assert chat.history.messages("tuned")[2:] == [
        Message("user", "one two three", "not answered; not part of the conversation")
    ]


def test_stopping_the_second_side_keeps_both_answers_as_far_as_they_got(chat):
    slowly(chat)
    chat.pipe.pauses_at = "tuned"
    ask(chat, "one two three")
    until(lambda: chat.history.last("tuned").begun)
    chat.stop()
    wait(chat)
    assert answers_of(chat, "base")[-1] == ("assistant", "base: one two three")
    assert answers_of(chat, "tuned")[-1] == ("assistant", "tuned:")


def test_an_error_is_kept_and_the_question_can_be_asked_again(chat):
    ask(chat)
    wait(chat)
    chat.pipe.breaks = True
    ask(chat, "second")
    wait(chat)
    assert chat.error is not None and chat.error.message == "The chat worker has ended."
    assert answers_of(chat, "base") == [("user", "hello there"), ("assistant", "base: hello there")]
    chat.pipe.breaks = False
    ask(chat, "second")
    wait(chat)
    assert chat.error is None and answers_of(chat, "base")[-2:] == [("user", "second"), ("assistant", "base: second")]


def test_another_run_closes_the_worker_and_begins_anew(chat):
    ask(chat)
    wait(chat)
    chat.choose("second")
    assert not chat.studio.pipes[0].lives and chat.run == "second" and answers_of(chat, "base") == []


def test_closing_gives_the_memory_back_and_keeps_the_words(chat):
    ask(chat)
    wait(chat)
    chat.close()
    assert not chat.studio.pipes[0].lives and answers_of(chat, "tuned")[-1][1] == "tuned: hello there"
    ask(chat, "back")
    wait(chat)
    assert len(chat.studio.pipes) == 2 and answers_of(chat, "tuned")[-1][1] == "tuned: back"


def test_an_idle_worker_is_closed(chat):
    ask(chat)
    wait(chat)
    chat.close_if_idle()
    assert chat.studio.pipes[0].lives
    chat.used -= 601
    chat.close_if_idle()
    assert not chat.studio.pipes[0].lives


def test_other_weights_of_the_same_run_are_another_conversation(home):
    from tests.ui.fakes import StudioWithChat

    studio = StudioWithChat(Home.find())
    opened = []
    studio.chats.open = lambda name, checkpoint="": opened.append((name, checkpoint)) or studio._open_chat(name)
    chat = ChatSession(studio)
    for checkpoint in ("", "step-32", "step-32"):
        chat.choose("run", checkpoint)
        chat.ask("run", "hello", "", ("tuned",), Sampling())
        chat.thread.join(5)
    assert opened == [("run", ""), ("run", "step-32")]
    assert len(chat.history.exchanges) == 2, "the second checkpoint's own questions"
    chat.ask("other", "hello", "", ("tuned",), Sampling())
    chat.thread.join(5)
    assert opened[-1] == ("other", ""), "another run begins with its adapter"
