"""The Chat page: base and adapter side by side, same prompt, same seed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
from pydantic import ValidationError

from qlora_studio.core.chat import Sampling, Side
from qlora_studio.core.errors import StudioError
from qlora_studio.ui import fields
from qlora_studio.ui.server.chat import SIDES
from qlora_studio.ui.server.messages import raise_for_page, sentences
from qlora_studio.ui.server.sync import Page, Scene, Slot, Updates, slot
from qlora_studio.ui.server.view import View
from qlora_studio.ui.server.workspace import Workspace
from qlora_studio.ui.views import chat as view
from qlora_studio.ui.views.html import Html, empty, error_card, tag

LOOK_SECONDS = 0.12
"""How often a growing answer is sent to the page."""
NAMES: dict[Side, str] = {"base": "Base", "tuned": "Adapter"}
HINTS: dict[Side, str] = {
    "base": "How it answers without your adapter.",
    "tuned": "The same prompt, the same seed, with your adapter.",
}
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
    "max_new_tokens": "Max new tokens",
    "seed": "Seed",
}


@dataclass(slots=True)
class ChatTab:
    """The controls that others wire."""

    run: gr.Dropdown
    weights: gr.Dropdown
    sides: gr.Radio
    formatted: gr.Radio
    notice: gr.HTML
    panes: dict[Side, gr.HTML]
    speed: gr.HTML
    message: gr.Textbox
    system: gr.Textbox
    sampling: list[gr.components.Component]
    clear: gr.Button
    prompt: gr.HTML


def build() -> ChatTab:
    with gr.Row(elem_id="chat-head"):
        run = gr.Dropdown(
            [], value=None, label="Run", info="Whose adapter answers.",
            elem_id="chat-run", interactive=True, scale=3, min_width=220,
        )  # fmt: skip
        weights = gr.Dropdown(
            [("the adapter", "")], value="", label="Weights", info="Its adapter, or a checkpoint it has kept.",
            elem_id="chat-weights", interactive=True, scale=2, min_width=180,
        )  # fmt: skip
        sides = gr.Radio(
            [("both", "both"), ("adapter", "tuned"), ("base", "base")], value="both", label="Who answers",
            info="One after the other, with the same seed.", elem_id="chat-who", interactive=True, scale=3,
            min_width=220,
        )  # fmt: skip
        formatted = gr.Radio(
            [("as written", False), ("formatted", True)], value=False, label="Show answers",
            info="Letter by letter, or as Markdown.", elem_id="chat-formatted", interactive=True,
            scale=2, min_width=180,
        )  # fmt: skip
    notice = gr.HTML(elem_id="chat-notice")
    with gr.Row(equal_height=True, elem_id="chat-panes"):
        panes: dict[Side, gr.HTML] = {side: gr.HTML(elem_id=f"chat-{side}", min_width=300) for side in SIDES}
    with gr.Accordion("Sampling and system message", open=False, elem_id="chat-sampling"):
        system = gr.Textbox(
            label="System message", info="Said before the first question of a new conversation.", lines=1, max_lines=4,
            elem_id="chat-system", interactive=True,
        )  # fmt: skip
        names = list(Sampling.model_fields)
        controls = []
        for triple in (names[:3], names[3:]):
            with gr.Row():
                controls += [_control(name) for name in triple]
    with gr.Accordion("The exact prompt", open=False, elem_id="chat-prompts"):
        prompt = gr.HTML(elem_id="chat-prompt")
    clear = gr.Button("New conversation", size="sm", elem_id="chat-clear")
    with gr.Column(elem_id="chat-bar", elem_classes="qs-action-bar"):
        speed = gr.HTML(elem_id="chat-speed")
        message = gr.Textbox(
            placeholder="Ask them something …  Enter sends, Shift+Enter starts a new line", label="Message",
            show_label=False, submit_btn=True, lines=1, max_lines=6, elem_id="chat-message", interactive=True,
        )  # fmt: skip
    return ChatTab(run, weights, sides, formatted, notice, panes, speed, message, system, controls, clear, prompt)


def slots(tab: ChatTab) -> list[Slot]:
    """What a reloaded page, and every other tab, needs to follow the conversation."""

    def mark(scene: Scene) -> object:
        chat = scene.workspace.chat
        return chat.version, chat.run, chat.checkpoint, chat.busy, scene.view.formatted

    return [
        *(slot(tab.panes[side], partial(_pane, side=side), mark) for side in SIDES),
        slot(tab.speed, _speed, mark),
        slot(tab.prompt, _prompts, mark),
        slot(tab.notice, _notice),
        slot(
            tab.run,
            lambda scene: gr.update(choices=scene.world.with_adapter, value=_chosen(scene)),
            lambda scene: (scene.world.with_adapter, scene.workspace.chat.run),
        ),
        slot(
            tab.weights,
            lambda scene: gr.update(choices=scene.world.weights(_chosen(scene)), value=scene.workspace.chat.checkpoint),
            lambda scene: (scene.world.weights(_chosen(scene)), scene.workspace.chat.checkpoint),
        ),
        slot(tab.message, _buttons, lambda scene: (scene.workspace.chat.busy, scene.workspace.chat.stopping)),
    ]


def wire(page: Page, tab: ChatTab) -> None:
    workspace = page.workspace

    def send(view: View, message: str, run: str | None, sides: str, system: str, *values: Any) -> Iterator[Updates]:
        if not (message or "").strip():
            yield {}
            return
        ask(workspace, message, run, sides, system, values)
        yield {tab.message: gr.update(value="")}
        yield from _while_busy(workspace)

    def format_answers(view: View, formatted: bool) -> None:
        view.formatted = formatted

    given = [tab.message, tab.run, tab.sides, tab.system, *tab.sampling]
    page.stream(tab.message.submit, send, given, concurrency_id="chat", concurrency_limit=4)
    page.on(tab.message.stop, lambda view: workspace.chat.stop(), queue=False)
    page.on(tab.run.input, lambda view, run: workspace.chat.choose(run), [tab.run])
    page.on(
        tab.weights.input, lambda view, run, weights: workspace.chat.choose(run, weights or ""), [tab.run, tab.weights]
    )
    page.on(tab.formatted.input, format_answers, [tab.formatted])
    page.on(tab.clear.click, lambda view: workspace.chat.clear())


def ask(workspace: Workspace, message: str, run: str | None, sides: str, system: str, values: tuple[Any, ...]) -> None:
    """Sends a message. Raises a StudioError where nobody can answer."""
    workspace.refuse_while_training("Chat")
    run = run or next(iter(workspace.world().with_adapter), None)  # a run that ended a moment ago
    if not run:
        raise StudioError("There is no run to chat with.", "Train one first, or choose one above.")
    sampling = read_sampling(values)
    workspace.chat.ask(run, message.strip(), (system or "").strip(), ANSWERING.get(sides, SIDES), sampling)


def read_sampling(values: tuple[Any, ...]) -> Sampling:
    """The sampling that the controls say. Raises a StudioError that names every wrong one."""
    given = dict(zip(Sampling.model_fields, values, strict=True))
    read: dict[str, Any] = {}
    for name, value in given.items():
        whole = Sampling.model_fields[name].annotation is int
        number = fields.parse_number(value, whole=whole) if isinstance(value, str) else value
        if number not in (None, ""):
            read[name] = int(number) if whole and isinstance(number, float) and number.is_integer() else number
    try:
        return Sampling(**read)
    except ValidationError as error:
        wrong = "; ".join(f"{LABELS[str(item['loc'][0])]}: {item['msg']}" for item in error.errors())
        raise StudioError(f"This sampling is not allowed: {wrong}.", "Change it above the message.") from None


def _while_busy(workspace: Workspace) -> Iterator[Updates]:
    """Has the page follow until the answers are there. Closing this loses nothing: the chat goes on by itself."""
    version = -1
    while workspace.chat.busy:
        if version != workspace.chat.version:
            version = workspace.chat.version
            yield {}
        time.sleep(LOOK_SECONDS)
    yield {}
    if workspace.chat.error is not None:
        raise_for_page(workspace.chat.error)


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
    return gr.Textbox(fields.as_text(info.default), max_lines=1, **common)


def _chosen(scene: Scene) -> str | None:
    names = scene.world.with_adapter
    return scene.workspace.chat.run if scene.workspace.chat.run in names else next(iter(names), None)


def _pane(scene: Scene, side: Side) -> Html:
    chat = scene.workspace.chat
    named = chat.base if side == "base" else " ".join(part for part in (chat.run, chat.checkpoint) if part)
    title = f"{NAMES[side]} · {named}" if named else NAMES[side]
    return view.pane(title, chat.history.messages(side), HINTS[side], formatted=scene.view.formatted)


def _buttons(scene: Scene) -> Any:
    chat = scene.workspace.chat
    stop: bool | str = "Stopping …" if chat.stopping else True
    return gr.update(submit_btn=not chat.busy, stop_btn=stop if chat.busy else False)


def _speed(scene: Scene) -> Html:
    chat = scene.workspace.chat
    last = [(NAMES[side].lower(), chat.history.last(side)) for side in SIDES]
    return view.speeds([(name, one.tokens, one.tokens_per_second) for name, one in last], loading=chat.loading)


def _prompts(scene: Scene) -> Html:
    history = scene.workspace.chat.history
    cards = [
        view.prompts_card(f"What the {NAMES[side].lower()} was given", history.last(side).prompt) for side in SIDES
    ]
    return tag("div", *cards, class_="qs-pair")


def _notice(scene: Scene) -> Html:
    if (run := scene.world.training) is not None:
        return empty(
            f"“{run.name}” is training",
            "It needs the memory for itself. Chat when it has ended, or stop it in the sidebar; its adapter is saved.",
        )
    if (error := scene.workspace.chat.error) is not None:
        return error_card(sentences(error), "The last answer did not come")
    if not scene.world.with_adapter:
        return empty("No adapter yet", "Train a run first; then ask base and adapter the same question here.")
    return Html("")
