"""The open chat: both sides, stop, errors, and what a reload finds."""

import time

import pytest

from qlora_studio.core.chat import ChatTurn, Sampling
from qlora_studio.core.errors import StudioError
from qlora_studio.home import Home
from qlora_studio.ui.server.chat import SIDES, Talk
from tests.ui.fakes import StudioWithChat


@pytest.fixture
def talk(tmp_path):
    return Talk(StudioWithChat(Home(tmp_path)))


def wait(talk):
    until = time.monotonic() + 5
    while talk.busy and time.monotonic() < until:
        time.sleep(0.01)
    assert not talk.busy


def ask(talk, message="hello there", run="first", sides=SIDES, system=""):
    talk.ask(run, message, system, sides, Sampling(seed=7))


def said(talk, side):
    return [(turn.role, turn.content) for turn in talk.halves[side].turns]


def test_both_sides_answer_one_after_the_other_with_the_same_settings(talk):
    ask(talk)
    wait(talk)
    asked = talk.studio.pipes[0].asked
    assert [request.side for request in asked] == ["base", "tuned"]
    assert {request.sampling for request in asked} == {Sampling(seed=7)}
    assert said(talk, "base") == [("user", "hello there"), ("assistant", "base: hello there")]
    assert said(talk, "tuned") == [("user", "hello there"), ("assistant", "tuned: hello there")]
    assert (talk.halves["tuned"].prompt, talk.halves["tuned"].tokens_per_second) == ("<exact>", 9.0)


def test_the_next_question_carries_what_was_said_and_the_system_message_once(talk):
    ask(talk, system="Be kind.", sides=("tuned",))
    wait(talk)
    ask(talk, "again", system="Be kind.", sides=("tuned",))
    wait(talk)
    assert talk.studio.pipes[0].asked[1].turns == (
        ChatTurn(role="system", content="Be kind."),
        ChatTurn(role="user", content="hello there"),
        ChatTurn(role="assistant", content="tuned: hello there"),
        ChatTurn(role="user", content="again"),
    )
    assert talk.halves["base"].turns == []
    assert [message["role"] for message in talk.halves["tuned"].messages()] == ["user", "assistant"] * 2


def test_a_growing_answer_can_be_read_by_anybody_who_looks(talk):
    talk.choose("first")
    talk.pipe = talk.studio.chats.open("first")
    talk.pipe.may_go.clear()
    ask(talk, "one two three", sides=("tuned",))
    until = time.monotonic() + 5
    while talk.halves["tuned"].growing != "tuned:" and time.monotonic() < until:
        time.sleep(0.01)
    assert talk.halves["tuned"].messages()[-1] == {"role": "assistant", "content": "tuned:"}
    with pytest.raises(StudioError, match="An answer is being written"):
        ask(talk)
    talk.stop()
    wait(talk)
    assert said(talk, "tuned")[-1] == ("assistant", "tuned:")


def test_stopping_the_first_side_leaves_the_second_unasked(talk):
    talk.choose("first")
    talk.pipe = talk.studio.chats.open("first")
    talk.pipe.may_go.clear()
    ask(talk, "one two three")
    talk.stop()
    wait(talk)
    assert [request.side for request in talk.pipe.asked] in ([], ["base"])
    assert said(talk, "tuned") == []


def test_an_error_is_kept_and_the_question_can_be_asked_again(talk):
    ask(talk)
    wait(talk)
    talk.pipe.breaks = True
    ask(talk, "second")
    wait(talk)
    assert talk.error is not None and talk.error.message == "The chat worker has ended."
    assert said(talk, "base") == [("user", "hello there"), ("assistant", "base: hello there")]
    talk.pipe.breaks = False
    ask(talk, "second")
    wait(talk)
    assert talk.error is None and said(talk, "base")[-1] == ("assistant", "base: second")


def test_another_run_closes_the_worker_and_begins_anew(talk):
    ask(talk)
    wait(talk)
    talk.choose("second")
    assert not talk.studio.pipes[0].lives and talk.run == "second" and said(talk, "base") == []


def test_closing_gives_the_memory_back_and_keeps_the_words(talk):
    ask(talk)
    wait(talk)
    talk.close()
    assert not talk.studio.pipes[0].lives and said(talk, "tuned")[-1][1] == "tuned: hello there"
    ask(talk, "back")
    wait(talk)
    assert len(talk.studio.pipes) == 2 and said(talk, "tuned")[-1][1] == "tuned: back"


def test_an_idle_worker_is_closed(talk):
    ask(talk)
    wait(talk)
    talk.close_if_idle()
    assert talk.studio.pipes[0].lives
    talk.used -= 601
    talk.close_if_idle()
    assert not talk.studio.pipes[0].lives
