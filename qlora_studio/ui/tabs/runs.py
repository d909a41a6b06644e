"""The Runs page: all runs, several compared, one whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from qlora_studio.core.chat import Sampling
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import JobRef
from qlora_studio.ui.server.messages import speaking, tell
from qlora_studio.ui.server.session import Desk
from qlora_studio.ui.server.tick import Now, Slot, slot
from qlora_studio.ui.views import runs as view
from qlora_studio.ui.views.chart import lines, live_chart
from qlora_studio.ui.views.html import Html, page_head

QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
LONGEST_ANSWER = 120
"""Tokens of an answer when a run is measured."""
COMPARED = 5
"""Runs in one chart; more lines than colours cannot be told apart."""
WIDTHS: list[str | int] = ["230px", "90px", "150px", "62px", "95px", "85px", "75px", "95px", "90px", "105px"]


@dataclass(slots=True)
class RunsTab:
    """The controls that others wire."""

    table: gr.Dataframe
    empty: gr.HTML
    compared: gr.Dropdown
    which: gr.Radio
    chart: gr.HTML
    peaks: gr.HTML
    details: gr.HTML
    chat: gr.Button
    export: gr.Button
    resume: gr.Button
    prompts: gr.Textbox
    measure: gr.Button
    measured: gr.HTML

    @property
    def shown(self) -> list[gr.blocks.Block]:
        """What `details` answers for, in its order."""
        return [self.details, self.chat, self.export, self.resume]


def build(desk: Desk) -> RunsTab:
    script = (desk.studio.assets / "chart.js").read_text(encoding="utf-8")
    gr.HTML(page_head("Runs", "Every run keeps its settings, its plan, its curve and its peak."))
    empty = gr.HTML(elem_id="runs-empty")
    table = gr.Dataframe(
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
    with gr.Row():
        compared = gr.Dropdown(
            [],
            value=[],
            multiselect=True,
            max_choices=COMPARED,
            label="Compare",
            info="The curves of these runs; a click on a row above shows that run below.",
            elem_id="runs-compared",
            interactive=True,
            scale=3,
        )
        which = gr.Radio(
            [("training", "train"), ("held out", "held_out")],
            value="train",
            label="Loss",
            info="On the rows learned from, or on those kept aside.",
            elem_id="runs-which",
            interactive=True,
            scale=1,
            min_width=220,
        )
    with gr.Row():
        with gr.Column(scale=7, min_width=320):
            chart = live_chart(script, "Loss", "Choose runs to compare.", "runs-chart", 280)
        with gr.Column(scale=4, min_width=300):
            peaks = gr.HTML(elem_id="runs-peaks")
    details = gr.HTML(elem_id="run-details")
    with gr.Row(elem_id="run-doors"):
        chat = gr.Button("Chat with this run", size="sm", interactive=False, elem_id="run-chat-btn")
        export = gr.Button("Export this run", size="sm", interactive=False, elem_id="run-export-btn")
        resume = gr.Button("Go on with this run", size="sm", visible=False, elem_id="run-resume-btn")
    with gr.Accordion("Measure it against its base", open=False, elem_id="run-measure"):
        prompts = gr.Textbox(
            "\n".join(desk.studio.data.demo().prompts),
            label="What to ask",
            info="One question a line. Base and adapter answer each, greedily; the held-out loss of both is measured too.",
            lines=4,
            max_lines=12,
            elem_id="run-prompts",
            interactive=True,
        )
        measure = gr.Button("Measure", size="sm", interactive=False, elem_id="run-measure-btn")
        measured = gr.HTML(elem_id="run-measured")
    return RunsTab(
        table, empty, compared, which, chart, peaks, details, chat, export, resume, prompts, measure, measured
    )


def wire(desk: Desk, tab: RunsTab) -> None:
    @speaking
    def compare(names: list[str], which: str) -> list[Any]:
        return list(compared(desk, names, which))

    @speaking
    def pick(event: gr.SelectData) -> list[Any]:
        desk.shown_run = str(event.row_value[0])
        return details(desk, desk.shown_run)

    @speaking
    def go_on() -> None:
        if (name := shown_run(desk)) is not None:
            desk.talk.close()
            desk.studio.runs.resume(name)
            tell(f"The run '{name}' goes on.")

    for event in (tab.compared.change, tab.which.change):
        event(compare, [tab.compared, tab.which], [tab.chart, tab.peaks], **QUIET)
    tab.table.select(pick, None, tab.shown, **QUIET)

    @speaking
    def measure(prompts: str) -> None:
        start_measuring(desk, prompts)

    tab.measure.click(measure, tab.prompts, None, **QUIET)
    tab.resume.click(go_on, None, None, **QUIET)


def slots(tab: RunsTab) -> list[Slot]:
    return [
        slot(
            tab.table,
            lambda now: gr.update(value=view.run_rows(now.desk.studio.runs.all()), visible=now.run is not None),
            _table_mark,
        ),
        slot(tab.empty, lambda now: Html("") if now.run else view.no_runs()),
        Slot(tab.shown, lambda now: details(now.desk, shown_run(now.desk)), _details_mark),
        slot(tab.measured, lambda now: _measured(now.desk)),
        slot(tab.measure, lambda now: gr.update(interactive=_can_measure(now))),
        slot(tab.compared, _choices, lambda now: now.runs_mark),
    ]


def compared(desk: Desk, names: list[str], which: str) -> tuple[dict[str, Any], Html]:
    """Curves and peaks of these runs; names that are no longer there are left out."""
    runs = []
    for name in names:
        try:
            runs.append(desk.studio.runs.open(name))
        except StudioError:
            continue
    return (view.compared_lines(runs, of_held_out=which == "held_out") if runs else lines([])), view.peaks_card(runs)


def shown_run(desk: Desk) -> str | None:
    """The run that is shown whole."""
    names = [run.name for run in desk.studio.runs.all()]
    return desk.shown_run if desk.shown_run in names else (names[0] if names else None)


def details(desk: Desk, name: str | None) -> list[Any]:
    """One run whole, and what can be done with it: chat, export, go on."""
    if name is None:
        closed = gr.update(interactive=False)
        return [Html(""), closed, closed, gr.update(visible=False)]
    run = desk.studio.runs.open(name)
    doors = gr.update(interactive=run.has_adapter)
    unfinished = gr.update(visible=run.state in ("interrupted", "stopped", "failed"))
    return [view.run_details(run), doors, doors, unfinished]


def start_measuring(desk: Desk, prompts: str) -> JobRef:
    """Has base and adapter of the shown run answer these prompts, a line each. Raises a StudioError."""
    name = shown_run(desk)
    if name is None:
        raise StudioError("There is no run to measure.", "Train one first.")
    desk.refuse_while_training("Measure")
    desk.talk.close()
    asked = [line.strip() for line in prompts.splitlines() if line.strip()]
    return desk.studio.runs.evaluate(name, asked, Sampling(max_new_tokens=LONGEST_ANSWER))


def newest_measurement(desk: Desk) -> JobRef | None:
    """The newest evaluation of the shown run."""
    name = shown_run(desk)
    jobs = desk.studio.runs.jobs_of(name, "evaluations") if name else []
    return jobs[0] if jobs else None


def _measured(desk: Desk) -> Html:
    job = newest_measurement(desk)
    return view.measured_card(desk.studio.jobs.look(job)) if job else Html("")


def _can_measure(now: Now) -> bool:
    job, name = newest_measurement(now.desk), shown_run(now.desk)
    busy = job is not None and now.desk.studio.jobs.look(job).at_work
    return name is not None and now.desk.studio.runs.open(name).has_adapter and not now.training and not busy


def _details_mark(now: Now) -> object:
    return shown_run(now.desk), now.runs_mark, now.run.progress.step if now.run else 0


def _table_mark(now: Now) -> object:
    step = now.run.progress.step if now.run else 0
    return now.runs_mark, step // 10  # a row that changes each second would lose the person's place


def _choices(now: Now) -> Any:
    """All runs; at first the newest three that have a curve are compared."""
    runs = now.desk.studio.runs.all()
    curved = [run.name for run in runs if run.has_curve]
    return gr.update(choices=[run.name for run in runs], value=curved[:3])
