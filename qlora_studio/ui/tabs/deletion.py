"""A thing is chosen, what goes with it and what refers to it is said, and a second word deletes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import gradio as gr

from qlora_studio.ui.server.messages import notify
from qlora_studio.ui.server.sync import Page, Scene, Slot, Updates
from qlora_studio.ui.server.view import View
from qlora_studio.ui.views.html import Html, error_card


@dataclass(frozen=True, slots=True)
class Deletable:
    """A kind of thing that can be deleted from a page."""

    word: str
    """What one of them is called: `data set`."""
    names: Callable[[Scene], list[tuple[str, str]]]
    """What is shown of each that there is, and its name."""
    facts: Callable[[Scene, str], list[str]]
    """What goes with one and what refers to it, in sentences."""
    delete: Callable[[Scene, str], None]
    """Deletes one. Raises a StudioError for one that cannot be deleted."""


@dataclass(frozen=True, slots=True)
class Deletion:
    """The controls for one kind."""

    of: Deletable
    which: gr.Dropdown
    ask: gr.Button
    holds: gr.HTML
    now: gr.Button
    keep: gr.Button


def build(of: Deletable, name: str) -> Deletion:
    """The controls, whose ids begin with `name`."""
    which = gr.Dropdown([], value=None, label="Which to delete", elem_id=f"{name}-delete", interactive=True)
    ask = gr.Button(f"Delete this {of.word} …", size="sm", variant="stop", elem_id=f"{name}-delete-btn")
    holds = gr.HTML(elem_id=f"{name}-holds")
    with gr.Row():
        now = gr.Button(
            "Delete it for good", size="sm", variant="stop", visible=False, elem_id=f"{name}-delete-now-btn"
        )
        keep = gr.Button("Keep it", size="sm", visible=False, elem_id=f"{name}-keep-btn")
    return Deletion(of, which, ask, holds, now, keep)


def slots(tab: Deletion) -> list[Slot]:
    return [Slot((tab.which, tab.ask, tab.holds, tab.now, tab.keep), lambda scene: _show(scene, tab))]


def wire(page: Page, tab: Deletion) -> None:
    workspace, word = page.workspace, tab.of.word

    def choose(view_: View, name: str | None) -> None:
        view_.to_delete[word] = name
        view_.deleted_next.pop(word, None)

    def ask(view_: View, name: str | None) -> None:
        view_.to_delete[word] = view_.deleted_next[word] = name

    def keep(view_: View) -> None:
        view_.deleted_next.pop(word, None)

    def delete(view_: View) -> None:
        going = view_.deleted_next.pop(word, None)
        if going is not None:
            tab.of.delete(Scene(workspace, workspace.world(), view_), going)
            view_.to_delete.pop(word, None)
            notify(f"The {word} is deleted.")

    page.on(tab.which.input, choose, [tab.which])
    page.on(tab.ask.click, ask, [tab.which])
    page.on(tab.keep.click, keep)
    page.on(tab.now.click, delete)


def _show(scene: Scene, tab: Deletion) -> Updates:
    names = tab.of.names(scene)
    there = [name for _, name in names]
    chosen = scene.view.to_delete.get(tab.of.word)
    chosen = chosen if chosen in there else next(iter(there), None)
    going = scene.view.deleted_next.get(tab.of.word)
    asking = going is not None and going in there
    label = next((shown for shown, name in names if name == going), "")
    return {
        tab.which: gr.update(choices=names, value=chosen, visible=bool(names)),
        tab.ask: gr.update(visible=bool(names) and not asking),
        tab.holds: error_card(tab.of.facts(scene, going), f"Delete “{label}”?") if asking and going else Html(""),
        tab.now: gr.update(visible=asking),
        tab.keep: gr.update(visible=asking),
    }
