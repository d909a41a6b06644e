"""The queue on the Runs page: what waits, in which order, and what a sweep of settings came to."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from qlora_studio.core.errors import StudioError
from qlora_studio.core.sweep import parse_sweep
from qlora_studio.ui.server.messages import notify
from qlora_studio.ui.server.sync import Page, Scene, Slot, Updates, slot
from qlora_studio.ui.server.view import View
from qlora_studio.ui.server.workspace import Workspace
from qlora_studio.ui.views import queue as view
from qlora_studio.ui.views.html import Html


@dataclass(slots=True)
class QueueTab:
    """The controls that others wire."""

    line: gr.HTML
    chosen: gr.Dropdown
    up: gr.Button
    down: gr.Button
    remove: gr.Button
    start: gr.Button
    tag: gr.Dropdown
    results: gr.HTML


def build() -> QueueTab:
    with gr.Accordion("Queue and sweeps", open=False, elem_id="queue"):
        line = gr.HTML(elem_id="queue-line")
        with gr.Row():
            chosen = gr.Dropdown(
                [], value=None, label="Waiting run", info="For the buttons beside it.", elem_id="queue-chosen",
                interactive=True, scale=3, min_width=200,
            )  # fmt: skip
            up = gr.Button("Earlier", size="sm", elem_id="queue-up-btn", min_width=90)
            down = gr.Button("Later", size="sm", elem_id="queue-down-btn", min_width=90)
            remove = gr.Button("Remove", size="sm", elem_id="queue-remove-btn", min_width=90)
            start = gr.Button("Start the queue", size="sm", elem_id="queue-start-btn", min_width=130)
        tag = gr.Dropdown(
            [], value=None, label="Results of the runs with this tag",
            info="A sweep gives its runs a tag; the best held-out loss comes first.", elem_id="queue-tag",
            interactive=True,
        )  # fmt: skip
        results = gr.HTML(elem_id="queue-results")
    return QueueTab(line, chosen, up, down, remove, start, tag, results)


def slots(tab: QueueTab) -> list[Slot]:
    controls = (tab.line, tab.chosen, tab.up, tab.down, tab.remove, tab.start)
    return [
        Slot(controls, lambda scene: _line(scene, tab), lambda scene: (scene.world.queued, _is_free(scene))),
        slot(
            tab.tag,
            lambda scene: gr.update(choices=scene.world.tags, value=_tag(scene)),
            lambda scene: (scene.world.tags, _tag(scene)),
        ),
        slot(tab.results, _results, lambda scene: (_tag(scene), scene.world.runs_mark)),
    ]


def wire(page: Page, tab: QueueTab) -> None:
    queue = page.workspace.studio.queue

    def shift(name: str | None, by: int) -> None:
        names = queue.names()
        if name in names:
            queue.move(name, names.index(name) + 1 + by)

    def remove(view_: View, name: str | None) -> None:
        if name:
            queue.remove(name)

    def start(view_: View) -> None:
        started = queue.start_next()
        notify(f"The run '{started}' has begun." if started else "Nothing was started.")

    def choose(view_: View, tag: str | None) -> None:
        view_.tag = tag

    page.on(tab.up.click, lambda view_, name: shift(name, -1), [tab.chosen])
    page.on(tab.down.click, lambda view_, name: shift(name, 1), [tab.chosen])
    page.on(tab.remove.click, remove, [tab.chosen])
    page.on(tab.start.click, start)
    page.on(tab.tag.input, choose, [tab.tag])


def put_into_queue(workspace: Workspace, sweep: str) -> list[str]:
    """Has the draft's run wait, or one for every combination of a sweep, a setting a line. Raises a StudioError."""
    config = workspace.draft.config()
    lines = [line for line in sweep.splitlines() if line.strip()]
    readiness = workspace.outlook(fresh=True).readiness
    if readiness is None or readiness.blocks:
        raise StudioError.of(readiness.blocks if readiness else workspace.outlook().problems)
    workspace.chat.close()
    if lines:
        return workspace.studio.queue.sweep(config, parse_sweep(lines))
    return [workspace.studio.queue.add(config)]


def _is_free(scene: Scene) -> bool:
    return scene.world.training is None


def _line(scene: Scene, tab: QueueTab) -> Updates:
    names = scene.world.queued
    some = bool(names)
    return {
        tab.line: view.line_card([scene.world.runs[name] for name in names], scene.world.training),
        tab.chosen: gr.update(choices=names, value=names[0] if names else None, visible=some),
        **{button: gr.update(visible=some) for button in (tab.up, tab.down, tab.remove)},
        tab.start: gr.update(visible=some and _is_free(scene)),
    }


def _tag(scene: Scene) -> str | None:
    tags = scene.world.tags
    return scene.view.tag if scene.view.tag in tags else next(iter(tags), None)


def _results(scene: Scene) -> Html:
    tag = _tag(scene)
    names = [run.name for run in scene.world.runs.values() if tag in run.tags]
    runs = [run for name in names if (run := scene.world.view(name)) is not None]
    return view.results_table(runs) if runs else Html("")
