"""Handlers of the Chat page."""

import pytest

from qlora_studio.core.chat import Sampling
from qlora_studio.core.errors import StudioError
from qlora_studio.home import Home
from qlora_studio.ui.server.session import Desk
from qlora_studio.ui.tabs import chat as chat_tab
from tests.ui.fakes import StudioWithChat

STANDARD = tuple(field.default for field in Sampling.model_fields.values())


def test_the_controls_untouched_are_the_standard_sampling():
    assert [chat_tab._control(name).value for name in Sampling.model_fields] == list(STANDARD)
    assert chat_tab.read_sampling(STANDARD) == Sampling()
    assert chat_tab.read_sampling((0.5, 0.9, 40.0, 1.1, 64.0, 7)) == Sampling(
        temperature=0.5, top_p=0.9, top_k=40, repetition_penalty=1.1, max_new_tokens=64, seed=7
    )


def test_every_sampling_setting_has_a_label_and_its_help():
    assert list(chat_tab.LABELS) == list(Sampling.model_fields)
    for name, field in Sampling.model_fields.items():
        assert chat_tab._control(name).info == field.description


def test_a_wrong_sampling_is_named():
    with pytest.raises(StudioError, match="temperature"):
        chat_tab.read_sampling((9.0, *STANDARD[1:]))


def test_an_answer_is_streamed_and_the_box_is_emptied(tmp_path):
    desk = Desk.open(StudioWithChat(Home(tmp_path)))
    desk.talk.choose("first")
    desk.talk.pipe = pipe = desk.studio.chats.open("first")
    pipe.may_go.clear()
    updates = chat_tab.answer(desk, " hello ", "first", "both", "", STANDARD)
    first = next(updates)
    pipe.may_go.set()
    *_, last = updates
    assert (first[0]["value"], first[0]["submit_btn"], first[0]["stop_btn"]) == ("", False, True)
    assert (last[0]["submit_btn"], last[0]["stop_btn"]) == (True, False)
    assert last[1]["value"] == [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "base: hello"}]
    assert last[2]["value"][-1]["content"] == "tuned: hello"
    assert (last[1]["label"], last[2]["label"]) == ("Base · smollm2-135m-instruct", "Adapter · first")
    assert "&lt;exact&gt;" in last[4]


def test_an_empty_message_asks_nobody(tmp_path):
    desk = Desk.open(StudioWithChat(Home(tmp_path)))
    assert len(list(chat_tab.answer(desk, "  ", "first", "both", "", STANDARD))) == 1
    assert desk.studio.pipes == []


def test_without_a_run_there_is_nobody_to_ask(desk):
    with pytest.raises(StudioError, match="There is no run to chat with"):
        list(chat_tab.answer(desk, "hello", None, "both", "", STANDARD))
