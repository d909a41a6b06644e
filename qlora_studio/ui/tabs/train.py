"""The Train page: presets, settings, the live memory plan, start, and the run as it goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from qlora_studio.core.errors import StudioError
from qlora_studio.ui import fields, form
from qlora_studio.ui.fields import Setting
from qlora_studio.ui.server import settings
from qlora_studio.ui.server.lookup import may_end_otherwise
from qlora_studio.ui.server.messages import notify
from qlora_studio.ui.server.settings import Control
from qlora_studio.ui.server.sync import Page, Scene, Slot, Updates, slot
from qlora_studio.ui.server.view import View
from qlora_studio.ui.server.workspace import Workspace
from qlora_studio.ui.tabs import rate
from qlora_studio.ui.tabs.live_chart import live_chart
from qlora_studio.ui.tabs.queue import put_into_queue
from qlora_studio.ui.tabs.rate import RatePart
from qlora_studio.ui.views import plan as plan_view
from qlora_studio.ui.views import run as run_view
from qlora_studio.ui.views import start as start_view
from qlora_studio.ui.views.html import Html, page_head, tag

FAMILIES = {"rank": "How much it may learn", "memory": "What it may take"}


@dataclass(slots=True)
class TrainTab:
    """The controls that others wire."""

    presets: dict[str, gr.Radio]
    controls: list[Control]
    data: gr.HTML
    plan: gr.HTML
    look_up: gr.Button
    notes: gr.HTML
    rate: RatePart
    readiness: gr.HTML
    start: gr.Button
    anyway: gr.Button
    queue: gr.Button
    sweep: gr.Textbox
    tiles: gr.HTML
    ending: gr.HTML
    chart: gr.HTML
    proof: gr.HTML
    log: gr.HTML


def build(workspace: Workspace, shared: Mapping[str, gr.components.Component]) -> TrainTab:
    """`shared` are controls of settings that stand on another page."""
    placed: dict[str, gr.components.Component] = dict(shared)

    def place(group: Sequence[Setting]) -> None:
        """Two settings a row."""
        for pair in (group[index : index + 2] for index in range(0, len(group), 2)):
            with gr.Row():
                for setting in pair:
                    placed[setting.dotted] = form.make(setting, workspace.draft[setting.dotted])

    with gr.Row():
        with gr.Column(scale=5, min_width=330):
            gr.HTML(page_head("Train", "Pick a preset; every value stays yours to change."))
            data = gr.HTML(elem_id="train-data")
            presets = {family: _cards(workspace, family) for family in FAMILIES}
            with gr.Group():
                placed["model.base"] = _base(workspace)
                place(fields.at("main"))
            with gr.Accordion("Advanced: every other setting", open=False, elem_id="advanced"):
                for part, title in fields.ADVANCED.items():
                    gr.HTML(tag("h3", title, class_="qs-part"))
                    place(fields.at(part))
            with gr.Accordion("Sweep: several runs with other values", open=False, elem_id="sweep-part"):
                sweep = gr.Textbox(
                    label="Settings and their values", placeholder="lora.rank=8,16\noptim.learning_rate=1e-4,2e-4",
                    info="One a line. “Queue” makes a run of every combination; their results stand on the Runs page.",
                    lines=2, max_lines=6, elem_id="sweep", interactive=True,
                )  # fmt: skip
        with gr.Column(scale=7, min_width=330):
            plan = gr.HTML(elem_id="plan")
            look_up = gr.Button("Look the model up again", size="sm", visible=False, elem_id="look-up-btn")
            notes = gr.HTML(elem_id="start-notes")
            rate_part = rate.build()
            ending = gr.HTML(elem_id="ending")
            tiles = gr.HTML(elem_id="tiles")
            script = (workspace.studio.assets / "chart.js").read_text(encoding="utf-8")
            chart = live_chart(script, "Loss", "The curve appears with the first step.", "loss-chart")
            proof = gr.HTML(elem_id="proof")
            log = gr.HTML(elem_id="log")
    with gr.Row(elem_id="start-bar", elem_classes="qs-action-bar"):
        readiness = gr.HTML(elem_id="readiness", min_width=240)
        anyway = gr.Button("Start anyway", variant="stop", visible=False, elem_id="start-anyway-btn", min_width=120)
        queue = gr.Button("Queue", elem_id="start-queue-btn", min_width=100)
        start = gr.Button("Start training", variant="primary", elem_id="start-btn", min_width=160)
    controls = [Control(fields.BY_NAME[dotted], component) for dotted, component in placed.items()]
    return TrainTab(
        presets, controls, data, plan, look_up, notes, rate_part, readiness, start, anyway, queue, sweep, tiles, ending, chart, proof, log
    )  # fmt: skip


def slots(tab: TrainTab) -> list[Slot]:
    return [
        *settings.slots(tab.controls),
        *rate.slots(tab.rate),
        *(_preset_slot(family, radio) for family, radio in tab.presets.items()),
        slot(tab.data, lambda scene: start_view.learns_from(scene.workspace.chosen_sets()), _draft_mark),
        slot(tab.plan, _plan, _plan_mark),
        slot(tab.look_up, _again_button, _draft_mark),
        slot(tab.notes, _notes, _draft_mark),
        Slot((tab.readiness, tab.start, tab.anyway), lambda scene: _start_bar(scene, tab), _draft_mark),
    ]


def live_slots(tab: TrainTab) -> list[Slot]:
    """The run as it goes."""
    return [
        slot(tab.tiles, lambda scene: run_view.run_tiles(scene.world.run)),
        slot(tab.ending, lambda scene: run_view.ending(scene.world.run)),
        slot(
            tab.chart,
            lambda scene: run_view.loss_lines(scene.world.run.progress if scene.world.run else None),
            lambda scene: run_view.curve_mark(scene.world.run),
        ),
        slot(tab.proof, lambda scene: plan_view.proof_card(scene.world.run.progress) if scene.world.run else Html("")),
        slot(tab.log, lambda scene: run_view.log(scene.world.run)),
    ]


def wire(page: Page, tab: TrainTab) -> None:
    settings.wire(page, tab.controls)
    rate.wire(page, tab.rate)
    inputs = [control.component for control in tab.controls]

    def choose(family: str, name: str) -> None:
        page.workspace.choose_preset(family, name)

    def begin(view: View, values: Sequence[Any], *, anyway: bool) -> None:
        settings.agree(page.workspace, view, tab.controls, values)
        start(page.workspace, anyway=anyway)

    for family, radio in tab.presets.items():
        page.on(radio.input, lambda view, name, family=family: choose(family, name), [radio])
    page.on(tab.look_up.click, lambda view: look_up(page.workspace))
    page.on(tab.queue.click, partial(wait, page, tab), [tab.sweep, *inputs], preprocess=False)
    page.on(tab.start.click, lambda view, *values: begin(view, values, anyway=False), inputs, preprocess=False)
    page.on(tab.anyway.click, lambda view, *values: begin(view, values, anyway=True), inputs, preprocess=False)


def start(workspace: Workspace, *, anyway: bool) -> str:
    """Starts the run of the draft. Raises a StudioError where it is blocked; `anyway` allows an over-full plan."""
    if workspace.rates.progress is not None:
        raise StudioError("Learning rates are being tried, and that needs the memory.", "Wait for it, or stop trying.")
    config = workspace.draft.config()
    readiness = workspace.outlook(fresh=True).readiness
    assert readiness is not None, "a config that can be read has a readiness"
    if readiness.blocks:
        raise StudioError.of(readiness.blocks)
    if readiness.over_budget is not None and not anyway:
        raise StudioError(
            "The plan does not fit, so nothing was started.", "Change what it names, or choose to start anyway."
        )
    workspace.chat.close()
    name = workspace.studio.runs.start(config)
    notify(f"The run '{name}' has begun.")
    return name


def wait(page: Page, tab: TrainTab, view: View, sweep: str, *values: Any) -> None:
    """Puts the run of the draft, or those of a sweep over it, into the queue. Raises a StudioError."""
    settings.agree(page.workspace, view, tab.controls, values)
    names = put_into_queue(page.workspace, sweep or "")
    notify(f"{len(names)} runs are in the queue." if len(names) > 1 else f"The run '{names[0]}' is in the queue.")


def look_up(workspace: Workspace) -> None:
    """Looks the draft's base up again, after a failure that may end otherwise."""
    workspace.lookup.start(workspace.draft.config().model, again=True)


def matching_preset(workspace: Workspace, family: str) -> str | None:
    """The preset whose every value the draft has; the one last chosen where several do."""
    presets = {preset.name: preset for preset in workspace.studio.presets.family(family)}
    last = workspace.draft.presets.get(family)
    ordered = [name for name in (last, *presets) if name in presets]
    values = workspace.draft.values
    return next(
        (name for name in ordered if all(values[key] == value for key, value in presets[name].changes.items())), None
    )


def _draft_mark(scene: Scene) -> object:
    """Changes whenever what follows from the draft might."""
    workspace, training = scene.workspace, scene.world.training
    rows = [(report.name, report.rows) for report in workspace.chosen_sets()]
    versions = (workspace.draft.version, workspace.tokens.version, workspace.lookup.version)
    return versions, rows, training and training.state


def _plan(scene: Scene) -> Html:
    outlook, looking_up = scene.workspace.outlook(), scene.workspace.lookup.progress
    if outlook.plan is not None:
        return plan_view.plan_card(outlook.plan)
    if looking_up is not None:
        return start_view.looking_up(scene.workspace.draft["model.base"], looking_up)
    return plan_view.no_plan([fields.sentence(problem) for problem in outlook.blocks])


def _plan_mark(scene: Scene) -> object:
    looking_up = scene.workspace.lookup.progress
    return _draft_mark(scene), looking_up and (looking_up.phase, looking_up.done)


def _notes(scene: Scene) -> Html:
    """Everything that stands against a start, and what is unusual about it."""
    outlook = scene.workspace.outlook()
    unusual = outlook.readiness.unusual if outlook.readiness else ()
    blocks = [fields.sentence(problem) for problem in outlook.blocks] if outlook.plan else []
    return start_view.notes(blocks, [fields.sentence(problem) for problem in unusual])


def _start_bar(scene: Scene, tab: TrainTab) -> Updates:
    """What stands before Start, and whether it can be pressed."""
    outlook, training = scene.workspace.outlook(), scene.world.training
    label = "Start training" if training is None else "Stopping …" if training.state == "stopping" else "Training …"
    readiness = outlook.readiness
    return {
        tab.readiness: start_view.start_line(readiness, [fields.sentence(problem) for problem in outlook.blocks]),
        tab.start: gr.update(interactive=readiness is not None and readiness.ready and training is None, value=label),
        tab.anyway: gr.update(visible=readiness is not None and readiness.can_start_anyway and training is None),
    }


def _again_button(scene: Scene) -> Any:
    return gr.update(visible=may_end_otherwise(scene.workspace.outlook().base))


def _base(workspace: Workspace) -> gr.Dropdown:
    base = fields.BY_NAME["model.base"]
    return gr.Dropdown(
        workspace.studio.bases.names(),
        value=workspace.draft[base.dotted],
        allow_custom_value=True,
        label=base.label,
        info=fields.help_of(base),
        elem_id=fields.element(base.dotted),
        interactive=True,
    )


def _cards(workspace: Workspace, family: str) -> gr.Radio:
    presets = workspace.studio.presets.family(family)
    choices = [(f"{preset.title}\n{_facts(preset.changes)}", preset.name) for preset in presets]
    return gr.Radio(
        choices,
        value=matching_preset(workspace, family),
        label=FAMILIES[family],
        elem_id=f"preset-{family}",
        elem_classes="qs-choice",
        interactive=True,
    )


def _preset_slot(family: str, radio: gr.Radio) -> Slot:
    def show(scene: Scene) -> Any:
        name = matching_preset(scene.workspace, family)
        description = {preset.name: preset.description for preset in scene.workspace.studio.presets.family(family)}
        return gr.update(value=name, info=description.get(name or "", "Your own values, no preset."))

    return slot(radio, show, lambda scene: scene.workspace.draft.version)


def _facts(changes: Mapping[str, Any]) -> str:
    """What a preset sets, in a few characters."""
    rank, tokens = changes.get("lora.rank"), changes.get("data.max_length")
    facts = [f"rank {rank}" if rank else "", f"{tokens} tok" if tokens else ""]
    return " · ".join(fact for fact in facts if fact)
