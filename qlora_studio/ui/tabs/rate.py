"""The part of the Train page that tries learning rates on the chosen rows and offers the best."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from qlora_studio.core.errors import StudioError
from qlora_studio.ui.server.sync import Page, Scene, Slot, Updates
from qlora_studio.ui.server.workspace import Workspace
from qlora_studio.ui.views import rate as rate_view


@dataclass(slots=True)
class RatePart:
    """The controls that others wire."""

    result: gr.HTML
    find: gr.Button
    stop: gr.Button
    take: gr.Button


def build() -> RatePart:
    result = gr.HTML(elem_id="rates")
    with gr.Row():
        find = gr.Button("Find the learning rate", size="sm", elem_id="find-rate-btn")
        stop = gr.Button("Stop trying", size="sm", visible=False, elem_id="stop-rate-btn")
        take = gr.Button("Use it", size="sm", variant="primary", visible=False, elem_id="take-rate-btn")
    return RatePart(result, find, stop, take)


def slots(part: RatePart) -> list[Slot]:
    return [Slot((part.result, part.find, part.stop, part.take), lambda scene: _show(scene, part), _mark)]


def wire(page: Page, part: RatePart) -> None:
    page.on(part.find.click, lambda view: find(page.workspace))
    page.on(part.stop.click, lambda view: page.workspace.rates.stop())
    page.on(part.take.click, lambda view: take(page.workspace))


def find(workspace: Workspace) -> None:
    """Starts the search for the draft. Raises a StudioError where its run could not start either."""
    workspace.refuse_while_training("Try learning rates")
    config, readiness = workspace.draft.config(), workspace.outlook(fresh=True).readiness
    assert readiness is not None, "a config that can be read has a readiness"
    if blocks := [*readiness.blocks, *([readiness.over_budget] if readiness.over_budget else [])]:
        raise StudioError.of(blocks)
    workspace.chat.close()
    workspace.rates.start(config, readiness.steps)


def take(workspace: Workspace) -> None:
    """Puts the rate that was found into the draft."""
    report = workspace.rates.report
    if report is not None and report.rate is not None:
        workspace.draft.change({"optim.learning_rate": report.rate})


def _show(scene: Scene, part: RatePart) -> Updates:
    rates = scene.workspace.rates
    progress, report = rates.progress, rates.report
    taken = report is not None and scene.workspace.draft["optim.learning_rate"] == report.rate
    return {
        part.result: rate_view.rates(progress, report, rates.problems),
        part.find: gr.update(visible=progress is None),
        part.stop: gr.update(visible=progress is not None),
        part.take: gr.update(
            visible=progress is None and report is not None and report.rate is not None and not taken,
            value=f"Use {report.rate:g}" if report is not None and report.rate is not None else "Use it",
        ),
    }


def _mark(scene: Scene) -> object:
    rates = scene.workspace.rates
    progress = rates.progress
    doing = progress and (progress.phase, progress.done)
    return rates.version, doing, scene.workspace.draft["optim.learning_rate"]
