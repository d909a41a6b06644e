"""The Chat page: base and adapter side by side, same prompt, same seed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
from pydantic import ValidationError

from qlora_studio.core.chat import Sampling, Side
from qlora_studio.core.errors import StudioError
from qlora_studio.ui.server.chat import SIDES, Half
from qlora_studio.ui.server.messages import say, speaking
from qlora_studio.ui.server.session import Desk
from qlora_studio.ui.server.tick import Now, Slot, slot
from qlora_studio.ui.views.html import Html, card, empty, number, says_error, tag

QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
LOOK_SECONDS = 0.1
"""How often a growing answer is sent to the page."""
ANSWERING: dict[str, tuple[Side, ...]] = {"both": SIDES, "tuned": ("tuned",), "base": ("base",)}
RANGES: dict[str, tuple[float, float, float]] = {
    "temperature": (0, 2, 0.05),
    "top_p": (0.05, 1, 0.05),
    "top_k": (0, 200, 1),
    "repetition_penalty": (0.5, 2, 0.05),
    "max_new_tokens": (16, 4096, 16),
}
LABELS = {
    "temperature": "Temperature",
    "top_p": "Top p",
    "top_k": "Top k",
    "repetition_penalty": "Repetition penalty",
    "max_new_tokens": "Longest answer, tokens",
    "seed": "Seed",
}


@dataclass(slots=True)
class ChatTab:
    """The controls that others wire."""

    run: gr.Dropdown
    who: gr.Radio
    notice: gr.HTML
    base: gr.Chatbot
    tuned: gr.Chatbot
    speed: gr.HTML
    message: gr.Textbox
    system: gr.Textbox
    sampling: list[gr.components.Component]
    clear: gr.Button
    prompt: gr.HTML

    @property
    def shown(self) -> list[gr.blocks.Block]:
        """What `render` answers for, in its order."""
        return [self.base, self.tuned, self.speed, self.prompt, self.notice]


def build(desk: Desk) -> ChatTab:
    with gr.Row(elem_id="chat-head"):
        run = gr.Dropdown(
            [],
            value=None,
            label="Run",
            info="Whose adapter answers; its base answers beside it.",
            elem_id="chat-run",
            interactive=True,
            scale=3,
            min_width=260,
        )
        who = gr.Radio(
            [("base and adapter", "both"), ("adapter", "tuned"), ("base", "base")],
            value="both",
            label="Who answers",
            info="One after the other, with the same seed.",
            elem_id="chat-who",
            interactive=True,
            scale=2,
            min_width=260,
        )
    notice = gr.HTML(elem_id="chat-notice")
    panes: dict[str, Any] = {
        "height": "calc(100dvh - 372px)",
        "min_height": 240,
        "layout": "bubble",
        "buttons": ["copy", "copy_all"],
        "feedback_options": None,
        "group_consecutive_messages": False,
        "allow_tags": False,
    }
    with gr.Row(equal_height=True):
        base = gr.Chatbot(
            label="Base", placeholder="### The base\nhow it answers without your adapter", elem_id="chat-base", **panes
        )
        tuned = gr.Chatbot(
            label="Adapter",
            placeholder="### Your adapter\nthe same prompt, the same seed",
            elem_id="chat-tuned",
            **panes,
        )
    speed = gr.HTML(elem_id="chat-speed")
    message = gr.Textbox(
        placeholder="Ask them something …  Enter sends, Shift+Enter starts a new line",
        label="Message",
        show_label=False,
        submit_btn=True,
        lines=1,
        max_lines=6,
        elem_id="chat-message",
        interactive=True,
    )
    with gr.Accordion("Sampling and system message", open=False, elem_id="chat-sampling"):
        system = gr.Textbox(
            label="System message",
            info="Said before the first question of a new conversation.",
            lines=1,
            max_lines=4,
            elem_id="chat-system",
            interactive=True,
        )
        names = list(Sampling.model_fields)
        controls = []
        for triple in (names[:3], names[3:]):
            with gr.Row():
                controls += [_control(name) for name in triple]
    with gr.Accordion("The exact prompt", open=False, elem_id="chat-prompts"):
        prompt = gr.HTML(elem_id="chat-prompt")
    clear = gr.Button("Begin a new conversation", size="sm", elem_id="chat-clear")
    return ChatTab(run, who, notice, base, tuned, speed, message, system, controls, clear, prompt)


def wire(desk: Desk, tab: ChatTab) -> None:
    @speaking
    def send(message: str, run: str | None, who: str, system: str, *values: Any) -> Iterator[list[Any]]:
        yield from answer(desk, message, run, who, system, values)

    @speaking
    def stop() -> None:
        desk.talk.stop()

    @speaking
    def choose(run: str | None) -> list[Any]:
        desk.talk.choose(run)
        return render(desk)

    @speaking
    def clear() -> list[Any]:
        desk.talk.clear()
        return render(desk)

    given = [tab.message, tab.run, tab.who, tab.system, *tab.sampling]
    tab.message.submit(send, given, [tab.message, *tab.shown], concurrency_id="chat", concurrency_limit=4, **QUIET)
    tab.message.stop(stop, None, None, queue=False, **QUIET)
    tab.run.input(choose, tab.run, tab.shown, **QUIET)
    for event in (tab.clear.click, tab.base.clear, tab.tuned.clear):
        event(clear, None, tab.shown, **QUIET)


def slots(tab: ChatTab) -> list[Slot]:
    """What a reloaded page, and every other tab, needs to follow the conversation."""
    version: Any = lambda now: now.desk.talk.version  # noqa: E731
    return [
        slot(tab.base, lambda now: _pane(now.desk, "base"), version),
        slot(tab.tuned, lambda now: _pane(now.desk, "tuned"), version),
        slot(tab.speed, lambda now: _speed(now.desk)),
        slot(tab.prompt, lambda now: _prompts(now.desk), version),
        slot(tab.notice, lambda now: _notice(now.desk, now)),
        slot(tab.run, _choices, lambda now: (now.runs_mark, now.desk.talk.run)),
        slot(tab.message, lambda now: gr.update(**_buttons(now.desk)), lambda now: (now.desk.talk.busy, now.training)),
    ]


def answer(
    desk: Desk, message: str, run: str | None, who: str, system: str, values: tuple[Any, ...]
) -> Iterator[list[Any]]:
    """Asks, then shows the answers as they grow. Closing this loses nothing: the talk goes on by itself."""
    message = (message or "").strip()
    if not message:
        yield [gr.skip(), *render(desk)]
        return
    desk.refuse_while_training("Chat")
    if not run:
        raise StudioError("There is no run to chat with.", "Train one first, or choose one above.")
    desk.talk.ask(run, message, (system or "").strip(), ANSWERING.get(who, SIDES), read_sampling(values))
    yield [gr.update(value="", **_buttons(desk)), *render(desk)]
    version = -1
    while desk.talk.busy:
        if version != desk.talk.version:
            version = desk.talk.version
            yield [gr.skip(), *render(desk)]
        time.sleep(LOOK_SECONDS)
    yield [gr.update(**_buttons(desk)), *render(desk)]
    if desk.talk.error is not None:
        say(desk.talk.error)


def read_sampling(values: tuple[Any, ...]) -> Sampling:
    """The sampling that the controls say. Raises a StudioError that names every wrong one."""
    given = {name: value for name, value in zip(Sampling.model_fields, values, strict=True) if value is not None}
    whole = {
        name: int(value) if isinstance(value, float) and Sampling.model_fields[name].annotation is int else value
        for name, value in given.items()
    }
    try:
        return Sampling(**whole)
    except ValidationError as error:
        wrong = "; ".join(f"{item['loc'][0]}: {item['msg']}" for item in error.errors())
        raise StudioError(
            f"These sampling settings are not allowed: {wrong}.", "Change them below the message."
        ) from None


def render(desk: Desk) -> list[Any]:
    """Both conversations, in the order of `ChatTab.shown`."""
    return [_pane(desk, "base"), _pane(desk, "tuned"), _speed(desk), _prompts(desk), _notice(desk)]


def _control(name: str) -> gr.components.Component:
    info = Sampling.model_fields[name]
    common: dict[str, Any] = {
        "label": LABELS[name],
        "info": info.description,
        "elem_id": f"chat-{name.replace('_', '-')}",
        "interactive": True,
        "min_width": 180,
    }
    if name in RANGES:
        low, high, step = RANGES[name]
        return gr.Slider(low, high, info.default, step=step, buttons=[], **common)
    return gr.Number(info.default, precision=0, minimum=0, **common)


def _pane(desk: Desk, side: Side) -> Any:
    run, label = desk.talk.run, "Base" if side == "base" else "Adapter"
    named = (desk.talk.base if side == "base" else run) or ""
    return gr.update(value=desk.talk.halves[side].messages(), label=f"{label} · {named}" if named else label)


def _buttons(desk: Desk) -> dict[str, Any]:
    busy = desk.talk.busy
    return {"submit_btn": not busy, "stop_btn": busy}


def _speed(desk: Desk) -> Html:
    """Tokens and speed of each side's last answer."""
    halves = [(name, desk.talk.halves[side]) for name, side in (("base", SIDES[0]), ("adapter", SIDES[1]))]
    said = [
        f"{name}: {half.tokens} tokens" + (f", {half.tokens_per_second:.1f} a second" if half.tokens_per_second else "")
        for name, half in halves
        if half.tokens
    ]
    if desk.talk.busy and not any(half.growing for _, half in halves):
        said.append("the model is loading or reading the prompt …")
    return tag("p", number("   ".join(said)), class_="qs-speed")


def _prompts(desk: Desk) -> Html:
    def one(name: str, half: Half) -> Html:
        return card(name, tag("pre", half.prompt or "Shown after the first answer.", class_="qs-log"))

    halves = desk.talk.halves
    return tag(
        "div",
        one("What the base was given", halves["base"]),
        one("What the adapter was given", halves["tuned"]),
        class_="qs-pair",
    )


def _notice(desk: Desk, now: Now | None = None) -> Html:
    running = now.run.name if now and now.training and now.run else (None if now else desk.running())
    if running:
        return empty(
            f"“{running}” is training",
            "It needs the memory for itself. Chat when it has ended, or stop it in the sidebar; its adapter is saved.",
        )
    if desk.talk.error is not None:
        return says_error([str(problem) for problem in desk.talk.error.problems], "The last answer did not come")
    if not any(run.has_adapter for run in desk.studio.runs.all()):
        return empty("No adapter yet", "Train a run first; then ask base and adapter the same question here.")
    return Html("")


def _choices(now: Now) -> Any:
    names = [run.name for run in now.desk.studio.runs.all() if run.has_adapter]
    chosen = now.desk.talk.run if now.desk.talk.run in names else (names[0] if names else None)
    return gr.update(choices=names, value=chosen)
