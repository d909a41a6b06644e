"""Handlers of the Chat page."""

import pytest

from qlora_studio.core.chat import Sampling
from qlora_studio.core.errors import StudioError
from qlora_studio.home import Home
from qlora_studio.ui.server.workspace import Workspace
from qlora_studio.ui.tabs import chat as chat_tab
from tests.ui.fakes import StudioWithChat, Tab

STANDARD = tuple(field.default for field in Sampling.model_fields.values())


@pytest.fixture
def chatting(tmp_path):
    return Tab(Workspace.open(StudioWithChat(Home(tmp_path))))


def test_the_controls_untouched_are_the_standard_sampling():
    shown = tuple(chat_tab._control(name).value for name in Sampling.model_fields)
    assert chat_tab.read_sampling(shown) == Sampling()
    assert chat_tab.read_sampling((0.5, 0.9, 40.0, 1.1, 64.0, " 7 ")) == Sampling(
        temperature=0.5, top_p=0.9, top_k=40, repetition_penalty=1.1, max_new_tokens=64, seed=7
    )


def test_every_sampling_setting_has_a_label_and_its_help():
    assert list(chat_tab.LABELS) == list(Sampling.model_fields)
    for name, field in Sampling.model_fields.items():
        assert chat_tab._control(name).info == field.description


def test_a_wrong_sampling_is_named_as_the_page_calls_it():
    with pytest.raises(StudioError, match="Temperature: "):
        chat_tab.read_sampling((9.0, *STANDARD[1:]))
    with pytest.raises(StudioError, match="Seed: "):
        chat_tab.read_sampling((*STANDARD[:-1], "soon"))


def test_an_answer_grows_in_every_tab_and_is_shown_as_it_was_said(chatting):
    workspace, other = chatting.workspace, Tab(chatting.workspace)
    workspace.chat.choose("first")
    workspace.chat.pipe = pipe = workspace.studio.chats.open("first")
    pipe.may_go.clear()
    chat_tab.ask(workspace, " is a<b and c>d? ", "first", "both", "", STANDARD)
    assert chatting.look().props["chat-message"] == {"submit_btn": False, "stop_btn": True, "__type__": "update"}
    pipe.may_go.set()
    list(chat_tab._while_busy(workspace))
    for tab in (chatting.look(), other.look()):
        assert "Base · smollm2-135m-instruct" in tab.words("chat-base")
        assert "base: is a<b and c>d?" in tab.words("chat-base")
        assert "tuned: is a<b and c>d?" in tab.words("chat-tuned")
        assert tab.props["chat-message"]["submit_btn"] is True
    assert "<exact>" in chatting.words("chat-prompt")


def test_stopping_shows_at_once(chatting):
    workspace = chatting.workspace
    workspace.chat.choose("first")
    workspace.chat.pipe = workspace.studio.chats.open("first")
    workspace.chat.pipe.may_go.clear()
    chat_tab.ask(workspace, "hello there", "first", "both", "", STANDARD)
    workspace.chat.stopping = True
    assert chatting.look().props["chat-message"]["stop_btn"] == "Stopping …"
    workspace.chat.stop()
    list(chat_tab._while_busy(workspace))
    assert chatting.look().props["chat-message"]["stop_btn"] is False


def test_formatting_is_a_choice_of_the_tab(chatting):
    other = Tab(chatting.workspace)
    chat_tab.ask(chatting.workspace, "**bold**", "first", "tuned", "", STANDARD)
    list(chat_tab._while_busy(chatting.workspace))
    chatting.view.formatted = True
    assert "<strong>bold</strong>" in chatting.look().value("chat-tuned")
    assert "<strong>" not in other.look().value("chat-tuned")


def test_without_a_run_there_is_nobody_to_ask(tab):
    with pytest.raises(StudioError, match="There is no run to chat with"):
        chat_tab.ask(tab.workspace, "hello", None, "both", "", STANDARD)
