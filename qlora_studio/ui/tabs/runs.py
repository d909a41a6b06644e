"""The Runs page: all runs, several compared, one whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import get_args

import gradio as gr

from qlora_studio.core.chat import Sampling
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import JobRef
from qlora_studio.core.progress import RESUMABLE
from qlora_studio.core.runs import common_answers
from qlora_studio.core.series import Along
from qlora_studio.ui.server.messages import notify
from qlora_studio.ui.server.sync import Page, Scene, Slot, Updates, slot
from qlora_studio.ui.server.view import View
from qlora_studio.ui.server.workspace import Workspace
from qlora_studio.ui.server.world import World
from qlora_studio.ui.tabs import queue as queue_tab
from qlora_studio.ui.tabs import run_controls
from qlora_studio.ui.tabs.live_chart import live_chart
from qlora_studio.ui.tabs.queue import QueueTab
from qlora_studio.ui.tabs.run_controls import RunControls
from qlora_studio.ui.views import run as run_view
from qlora_studio.ui.views import runs as view
from qlora_studio.ui.views.html import Html, join, page_head

LONGEST_ANSWER = 120
"""Tokens of an answer when a run is evaluated."""
COMPARED = 5
"""Runs in one chart; more lines than colours cannot be told apart."""
WIDTHS: list[str | int] = ["230px", "90px", "150px", "62px", "95px", "85px", "75px", "95px", "90px", "105px", "200px"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Several runs beside one another."""

    runs: gr.Dropdown
    loss: gr.Radio
    along: gr.Radio
    chart: gr.HTML
    peaks: gr.HTML
    differences: gr.HTML


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Base and adapter of the shown run against each other."""

    weights: gr.Dropdown
    prompts: gr.Textbox
    start: gr.Button
    result: gr.HTML


@dataclass(frozen=True, slots=True)
class RunsTab:
    """The controls that others wire."""

    table: gr.Dataframe
    empty: gr.HTML
    queue: QueueTab
    comparison: Comparison
    details: gr.HTML
    chat: gr.Button
    export: gr.Button
    resume: gr.Button
    controls: RunControls
    evaluation: Evaluation


def build(workspace: Workspace) -> RunsTab:
    gr.HTML(page_head("Runs", "Every run keeps its settings, its plan, its curve and its peak."))
    empty = gr.HTML(elem_id="runs-empty")
    table = _build_table()
    queue = queue_tab.build()
    comparison = _build_comparison((workspace.studio.assets / "chart.js").read_text(encoding="utf-8"))
    details = gr.HTML(elem_id="run-details")
    with gr.Row(elem_id="run-doors"):
        chat = gr.Button("Chat with this run", size="sm", interactive=False, elem_id="run-chat-btn")
        export = gr.Button("Export this run", size="sm", interactive=False, elem_id="run-export-btn")
        resume = gr.Button("Resume this run", size="sm", visible=False, elem_id="run-resume-btn")
        buttons = run_controls.build_buttons()
    controls = run_controls.build(buttons)
    evaluation = _build_evaluation(workspace.studio.data.demo().prompts)
    return RunsTab(table, empty, queue, comparison, details, chat, export, resume, controls, evaluation)


def _build_table() -> gr.Dataframe:
    return gr.Dataframe(
        headers=list(view.HEADINGS),
        datatype="str",
        type="array",
        interactive=False,
        show_label=False,
        show_search="filter",
        pinned_columns=1,
        max_height=290,
        column_widths=WIDTHS,
        elem_id="runs-table",
        buttons=["copy"],
    )


def _build_comparison(script: str) -> Comparison:
    """The choice of runs, then their curves and peaks, then what tells them apart. `script` draws the curves."""
    with gr.Row():
        runs = gr.Dropdown(
            [], value=[], multiselect=True, max_choices=COMPARED, label="Compare",
            info="The curves of these runs; a click on a row above shows that run below.", elem_id="runs-compared",
            interactive=True, scale=3,
        )  # fmt: skip
        loss = gr.Radio(
            [("training", "train"), ("evaluation", "evaluation")], value="train", label="Loss",
            info="On the rows learned from, or on the evaluation set.", elem_id="runs-which", interactive=True, scale=1,
            min_width=240,
        )  # fmt: skip
        along = gr.Radio(
            [("steps", "step"), ("tokens", "tokens"), ("time", "seconds")], value="step", label="Along",
            info="What the curves are laid over each other by; time is that of the steps alone.",
            elem_id="runs-along", interactive=True, scale=1, min_width=240,
        )  # fmt: skip
    with gr.Row():
        with gr.Column(scale=7, min_width=320):
            chart = live_chart(script, "Loss", "Choose runs to compare.", "runs-chart", 280)
        with gr.Column(scale=4, min_width=300):
            peaks = gr.HTML(elem_id="runs-peaks")
    differences = gr.HTML(elem_id="runs-differences")
    return Comparison(runs, loss, along, chart, peaks, differences)


def _build_evaluation(prompts: Sequence[str]) -> Evaluation:
    with gr.Accordion("Evaluate it against its base", open=False, elem_id="run-evaluate"):
        return Evaluation(
            weights=gr.Dropdown(
                [("the adapter", "")], value="", label="Weights", info="Its adapter, or a checkpoint it has kept.",
                elem_id="run-weights", interactive=True,
            ),
            prompts=gr.Textbox(
                "\n".join(prompts), label="Prompts",
                info="One a line. Base and adapter answer each, greedily; the held-out loss of both is computed too.",
                lines=4, max_lines=12, elem_id="run-prompts", interactive=True,
            ),
            start=gr.Button("Evaluate", size="sm", interactive=False, elem_id="run-evaluate-btn"),
            result=gr.HTML(elem_id="run-evaluated"),
        )  # fmt: skip


def slots(tab: RunsTab) -> list[Slot]:
    return [
        slot(
            tab.table,
            lambda scene: gr.update(
                value=view.run_rows(list(scene.world.runs.values())), visible=bool(scene.world.runs)
            ),
            lambda scene: scene.world.runs_mark,
        ),
        slot(tab.empty, lambda scene: Html("") if scene.world.runs else view.no_runs()),
        slot(
            tab.comparison.runs,
            lambda scene: gr.update(choices=list(scene.world.runs), value=compared_names(scene)),
            lambda scene: (list(scene.world.runs), compared_names(scene)),
        ),
        Slot(
            (tab.comparison.chart, tab.comparison.peaks, tab.comparison.differences),
            lambda scene: _comparison(scene, tab.comparison),
            _compared_mark,
        ),
        Slot(
            (tab.details, tab.chat, tab.export, tab.resume),
            lambda scene: _details(scene, tab),
            lambda scene: run_view.run_mark(scene.world.runs.get(shown_run(scene.world, scene.view) or "")),
        ),
        slot(
            tab.evaluation.weights,
            lambda scene: gr.update(choices=scene.world.weights(shown_run(scene.world, scene.view)), value=""),
            lambda scene: (shown_run(scene.world, scene.view), scene.world.weights(shown_run(scene.world, scene.view))),
        ),
        slot(tab.evaluation.result, _evaluated),
        *run_controls.slots(tab.controls, shown_run),
        *queue_tab.slots(tab.queue),
        slot(tab.evaluation.start, lambda scene: gr.update(interactive=_can_be_evaluated(scene))),
    ]


def wire(page: Page, tab: RunsTab) -> None:
    workspace = page.workspace

    def compare(view_: View, names: list[str]) -> None:
        view_.compared = tuple(names)

    def compare_loss(view_: View, loss: str) -> None:
        view_.compared_loss = loss

    def compare_along(view_: View, along: Along) -> None:
        view_.compared_along = along if along in get_args(Along) else "step"

    def pick(view_: View, name: str) -> None:
        view_.run = name

    def resume(view_: View) -> None:
        if (name := shown_run(workspace.world(), view_)) is not None:
            workspace.chat.close()
            workspace.studio.runs.resume(name)
            notify(f"The run '{name}' is resumed.")

    run_controls.wire(page, tab.controls, shown_run)
    queue_tab.wire(page, tab.queue)
    page.on(tab.comparison.runs.input, compare, [tab.comparison.runs])
    page.on(tab.comparison.loss.input, compare_loss, [tab.comparison.loss])
    page.on(tab.comparison.along.input, compare_along, [tab.comparison.along])
    page.on_row(tab.table.select, pick)
    page.on(tab.resume.click, resume)
    page.on(tab.evaluation.start.click, partial(_started, workspace), [tab.evaluation.prompts, tab.evaluation.weights])


def shown_run(world: World, view_: View) -> str | None:
    """The run that is shown whole: the one that was picked, else that of the sidebar."""
    if view_.run in world.runs:
        return view_.run
    return world.run.name if world.run else next(iter(world.runs), None)


def compared_names(scene: Scene) -> list[str]:
    """The runs whose curves are compared; at first the newest three that have one."""
    runs = scene.world.runs
    if scene.view.compared is not None:
        return [name for name in scene.view.compared if name in runs]
    return [run.name for run in runs.values() if run.has_curve][:3]


def start_evaluation(workspace: Workspace, name: str | None, prompts: str, checkpoint: str = "") -> JobRef:
    """Has base and adapter of a run answer these prompts, a line each. Raises a StudioError."""
    if name is None:
        raise StudioError("There is no run to evaluate.", "Train one first.")
    workspace.refuse_while_training("Evaluate")
    workspace.chat.close()
    lines = [line.strip() for line in prompts.splitlines() if line.strip()]
    return workspace.studio.runs.evaluate(name, lines, Sampling(max_new_tokens=LONGEST_ANSWER), checkpoint)


def _started(workspace: Workspace, view_: View, prompts: str, checkpoint: str | None) -> None:
    start_evaluation(workspace, shown_run(workspace.world(), view_), prompts, checkpoint or "")


def _compared_mark(scene: Scene) -> object:
    runs = [scene.world.runs[name] for name in compared_names(scene)]
    evaluations = [scene.world.newest_job(run.name, "evaluations") for run in runs]
    states = [job and job.state for job in evaluations]
    return [run_view.run_mark(run) for run in runs], states, scene.view.compared_loss, scene.view.compared_along


def _comparison(scene: Scene, shown: Comparison) -> Updates:
    runs = [run for name in compared_names(scene) if (run := scene.world.view(name)) is not None]
    of_evaluation = scene.view.compared_loss == "evaluation"
    answers = common_answers([scene.workspace.studio.runs.answers(run.name) for run in runs])
    return {
        shown.chart: view.compared_lines(runs, of_evaluation=of_evaluation, along=scene.view.compared_along),
        shown.peaks: view.peaks_card(runs),
        shown.differences: join((view.differences_card(runs), view.answers_card(runs, answers))),
    }


def _details(scene: Scene, tab: RunsTab) -> Updates:
    """One run whole, and what can be done with it: chat, export, resume."""
    name = shown_run(scene.world, scene.view)
    run = scene.world.view(name)
    has_adapter = run is not None and run.has_adapter
    summary = scene.world.runs.get(name or "")
    unreadable = view.unreadable_run(summary) if summary else Html("")
    return {
        tab.details: view.run_details(run) if run else unreadable,
        tab.chat: gr.update(interactive=has_adapter),
        tab.export: gr.update(interactive=has_adapter),
        tab.resume: gr.update(visible=run is not None and run.state in RESUMABLE),
    }


def _evaluated(scene: Scene) -> Html:
    job = scene.world.newest_job(shown_run(scene.world, scene.view), "evaluations")
    return view.evaluation_card(job) if job else Html("")


def _can_be_evaluated(scene: Scene) -> bool:
    name = shown_run(scene.world, scene.view)
    job = scene.world.newest_job(name, "evaluations")
    at_work = job is not None and job.at_work
    return name in scene.world.with_adapter and scene.world.training is None and not at_work
