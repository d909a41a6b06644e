"""The fold of the Export page in which a finished export goes on: to LM Studio, to Ollama, to the hub."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from qlora_studio.core.errors import StudioError
from qlora_studio.core.push import DESTINATIONS, default_name, find_destination
from qlora_studio.ui.server.export import newest_folder
from qlora_studio.ui.server.sync import Page, Scene, Slot, slot
from qlora_studio.ui.server.view import View
from qlora_studio.ui.views import push as view
from qlora_studio.ui.views.html import Html


@dataclass(frozen=True, slots=True)
class PushFold:
    """Its controls."""

    fold: gr.Accordion
    to: gr.Radio
    name: gr.Textbox
    public: gr.Checkbox
    push: gr.Button
    stop: gr.Button
    state: gr.HTML


def build() -> PushFold:
    with gr.Accordion("Hand it on", open=False, visible=False, elem_id="push") as fold:
        to = gr.Radio(
            view.destinations(),
            value=DESTINATIONS[0].name,
            label="To",
            elem_id="push-to",
            elem_classes="qs-choice qs-choice-wide",
            interactive=True,
        )
        name = gr.Textbox(
            label="Name there",
            info="me/model for LM Studio and the hub, model for Ollama; empty makes one of the folder's.",
            max_lines=1,
            elem_id="push-name",
            interactive=True,
        )
        public = gr.Checkbox(
            False,
            label="Public",
            info="On the hub: for everybody to see. Else only you, and whom you let in.",
            elem_id="push-public",
            interactive=True,
        )
        push = gr.Button("Hand it on", size="sm", elem_id="push-btn")
        stop = gr.Button("Stop", size="sm", variant="stop", visible=False, elem_id="push-stop-btn")
        return PushFold(fold, to, name, public, push, stop, gr.HTML(elem_id="push-state"))


def slots(tab: PushFold) -> list[Slot]:
    return [
        slot(tab.fold, lambda scene: gr.update(visible=newest_folder(scene) is not None)),
        slot(tab.name, _placeholder),
        slot(tab.public, lambda scene: gr.update(visible=scene.view.push_to == "hub")),
        slot(tab.stop, lambda scene: gr.update(visible=at_work(scene))),
        slot(tab.push, lambda scene: gr.update(interactive=not at_work(scene))),
        slot(tab.state, _state),
    ]


def wire(page: Page, tab: PushFold) -> None:
    workspace = page.workspace

    def choose(view_: View, to: str) -> None:
        view_.push_to = find_destination(to).name

    def push(view_: View, to: str, name: str, public: bool) -> None:
        scene = Scene(workspace, workspace.world(), view_)
        folder = newest_folder(scene)
        if folder is None:
            raise StudioError("There is no export to hand on.", "Export first.")
        if at_work(scene):
            raise StudioError("Another one is under way.", "Wait for it, or stop it.")
        view_.push_job = workspace.studio.exports.push(folder, find_destination(to), name, public=public)

    def stop(view_: View) -> None:
        if view_.push_job is not None:
            workspace.studio.jobs.stop(view_.push_job)

    page.on(tab.to.input, choose, [tab.to])
    page.on(tab.push.click, push, [tab.to, tab.name, tab.public])
    page.on(tab.stop.click, stop)


def at_work(scene: Scene) -> bool:
    """Whether this tab hands an export on just now."""
    job = scene.view.push_job
    return job is not None and scene.workspace.studio.jobs.look(job).at_work


def _state(scene: Scene) -> Html:
    job = scene.view.push_job
    return view.push_card(scene.workspace.studio.jobs.look(job)) if job is not None else Html("")


def _placeholder(scene: Scene) -> object:
    folder = newest_folder(scene)
    return gr.update(placeholder=default_name(scene.view.push_to, folder.rpartition("/")[2]) if folder else "")
