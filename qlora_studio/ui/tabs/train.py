"""The Train page: presets, settings, the live memory plan, start, and the run as it goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from qlora_studio.core.errors import StudioError
from qlora_studio.ui import form
from qlora_studio.ui.form import Setting
from qlora_studio.ui.server.messages import speaking, tell
from qlora_studio.ui.server.session import Desk
from qlora_studio.ui.server.tick import Slot, slot
from qlora_studio.ui.views import plan as plan_view
from qlora_studio.ui.views import run as run_view
from qlora_studio.ui.views.chart import live_chart
from qlora_studio.ui.views.html import Html, page_head, plural, tag

QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
FAMILIES = {"rank": "How much it may learn", "memory": "What it may take"}


@dataclass(slots=True)
class TrainTab:
    """The controls that others wire."""

    presets: dict[str, gr.Radio]
    settings: list[Setting]
    controls: list[gr.components.Component]
    data: gr.HTML
    plan: gr.HTML
    blocked: gr.HTML
    start: gr.Button
    anyway: gr.Button
    tiles: gr.HTML
    ending: gr.HTML
    chart: gr.HTML
    proof: gr.HTML
    log: gr.HTML

    @property
    def shown(self) -> list[gr.blocks.Block]:
        """What `render` answers for, in its order."""
        return [self.data, self.plan, self.blocked, self.start, self.anyway, *self.presets.values()]


def build(desk: Desk, shared: dict[str, gr.components.Component]) -> TrainTab:
    """`shared` are controls of settings that stand on another page."""
    controls: dict[str, gr.components.Component] = dict(shared)

    def place(setting: Setting) -> None:
        controls[setting.dotted] = form.make(setting, desk.draft[setting.dotted])

    with gr.Row():
        with gr.Column(scale=5, min_width=330):
            gr.HTML(page_head("Train", "Pick a preset; every value stays yours to change."))
            data = gr.HTML(elem_id="train-data")
            presets = {family: _cards(desk, family) for family in FAMILIES}
            with gr.Group():
                bases = desk.studio.bases.names()
                base = form.BY_NAME["model.base"]
                info = form.field_info(base.dotted).description
                controls[base.dotted] = gr.Dropdown(
                    bases,
                    value=desk.draft[base.dotted],
                    allow_custom_value=True,
                    label=base.label,
                    info=info,
                    elem_id=form.element(base.dotted),
                    interactive=True,
                )
                main = form.at("main")
                for pair in (main[index : index + 2] for index in range(0, len(main), 2)):
                    with gr.Row():
                        for setting in pair:
                            place(setting)
            with gr.Accordion("Advanced: every other setting", open=False, elem_id="advanced"):
                for advanced, title in form.ADVANCED.items():
                    gr.HTML(tag("h3", title, class_="qs-part"))
                    settings = form.at(advanced)
                    for pair in (settings[index : index + 2] for index in range(0, len(settings), 2)):
                        with gr.Row():
                            for setting in pair:
                                place(setting)
        with gr.Column(scale=7, min_width=330):
            plan = gr.HTML(elem_id="plan")
            blocked = gr.HTML(elem_id="blocked")
            with gr.Row(elem_id="start-row"):
                start = gr.Button("Start training", variant="primary", elem_id="start-btn", scale=3)
                anyway = gr.Button("Start anyway", variant="stop", visible=False, elem_id="start-anyway-btn", scale=1)
            ending = gr.HTML(elem_id="ending")
            tiles = gr.HTML(elem_id="tiles")
            chart = live_chart(_script(desk), "Loss", "The curve appears with the first step.", "loss-chart")
            proof = gr.HTML(elem_id="proof")
            log = gr.HTML(elem_id="log")
    listed = [form.BY_NAME[dotted] for dotted in controls]
    return TrainTab(
        presets, listed, list(controls.values()), data, plan, blocked, start, anyway, tiles, ending, chart, proof, log
    )


def wire(desk: Desk, tab: TrainTab, after_start: Callable[[Any], None]) -> None:
    def change(setting: Setting) -> Callable[[Any], list[Any]]:
        @speaking
        def changed(value: Any) -> list[Any]:
            desk.change(form.read([setting], [form.clamp(setting, value, desk.draft[setting.dotted])]))
            desk.make_plan()
            return render(desk)

        return changed

    def choose(family: str) -> Callable[[str], list[Any]]:
        @speaking
        def chosen(name: str) -> list[Any]:
            desk.choose_preset(family, name)
            desk.make_plan()
            return [*show_settings(desk, tab), *render(desk)]

        return chosen

    def begin(*, anyway: bool) -> Callable[[], None]:
        @speaking
        def started() -> None:
            start(desk, anyway=anyway)

        return started

    # only what a person typed, one field at a time: a page that is still loading must not write old values back
    for setting, control in zip(tab.settings, tab.controls, strict=True):
        for event in edits(control):
            # unchecked by Gradio, which would refuse a number that is half typed: TrainConfig says what is wrong
            event(change(setting), control, tab.shown, trigger_mode="always_last", preprocess=False, **QUIET)
    for family, radio in tab.presets.items():
        radio.input(choose(family), radio, [*tab.controls, *tab.shown], **QUIET)
    after_start(tab.start.click(begin(anyway=False), None, None, **QUIET))
    after_start(tab.anyway.click(begin(anyway=True), None, None, **QUIET))


def edits(control: Any) -> list[Callable[..., Any]]:
    """The events of a control that a person causes. A text that is pasted with the mouse shows only on leaving."""
    return [control.input, control.blur] if isinstance(control, gr.Textbox) else [control.input]


def start(desk: Desk, *, anyway: bool) -> str:
    """Starts the run of the draft. Raises a StudioError where it is blocked; `anyway` allows an over-full plan."""
    config = desk.config()
    if not config.data.sources:
        raise StudioError("There is no data to train on.", "Import a file on the Data page, or use the demo rows.")
    if standing := desk.standing_errors():
        raise StudioError(
            f"There are findings that would spoil the run: {', '.join(standing)}.",
            "Mend the rows, or accept them by name on the Data page.",
        )
    plan = desk.studio.plans.make(config, desk.tokens.lengths_for(config))
    if not plan.fits and not anyway:
        raise StudioError(
            "The plan does not fit, so nothing was started.", "Change what it names, or choose to start anyway."
        )
    desk.talk.close()
    name = desk.studio.runs.start(config)
    tell(f"The run '{name}' has begun.")
    return name


def slots(tab: TrainTab) -> list[Slot]:
    """What follows the current run."""
    return [
        Slot(tab.shown, lambda now: render(now.desk, now.training), lambda now: (now.desk.version, now.training)),
        slot(tab.tiles, lambda now: run_view.run_tiles(now.run)),
        slot(tab.ending, lambda now: run_view.ending(now.run)),
        slot(tab.chart, lambda now: run_view.loss_lines(now.run.progress if now.run else None)),
        slot(tab.proof, lambda now: plan_view.proof_card(now.run.progress) if now.run else Html("")),
        slot(tab.log, lambda now: run_view.log(now.run)),
    ]


def show_settings(desk: Desk, tab: TrainTab) -> list[Any]:
    """Every control with what the draft says."""
    return [form.show(setting, desk.draft[setting.dotted]) for setting in tab.settings]


def render(desk: Desk, training: bool | None = None) -> list[Any]:
    """Plan and readiness of the draft, in the order of `TrainTab.shown`."""
    if training is None:
        training = desk.running() is not None
    ready = bool(desk.draft["data.sources"]) and desk.plan is not None and not desk.standing_errors()
    fits = desk.plan is not None and desk.plan.fits
    chosen = desk.chosen_sets()
    named = ", ".join(f"{report.name} ({plural(report.rows, 'row')})" for report in chosen)
    data = (
        tag("p", "Learns from ", tag("b", named), ".", class_="qs-guess")
        if chosen
        else tag("p", "No data chosen yet: begin on the Data page.", class_="qs-guess bad")
    )
    return [
        data,
        plan_view.plan_card(desk.plan) if desk.plan else plan_view.no_plan(desk.plan_problems),
        _why_blocked(desk),
        gr.update(interactive=ready and fits and not training, value="Training …" if training else "Start training"),
        gr.update(visible=ready and not fits and not training),
        *(gr.update(value=matching_preset(desk, family), info=_preset_says(desk, family)) for family in FAMILIES),
    ]


def matching_preset(desk: Desk, family: str) -> str | None:
    """The preset whose every value the draft has; the one last chosen where several do."""
    presets = {preset.name: preset for preset in desk.studio.presets.family(family)}
    last = desk.presets.get(family)
    ordered = [name for name in (last, *presets) if name in presets]
    return next(
        (name for name in ordered if all(desk.draft[key] == value for key, value in presets[name].changes.items())),
        None,
    )


def _cards(desk: Desk, family: str) -> gr.Radio:
    choices = [
        (f"{preset.title}\n{_facts(preset.changes)}", preset.name) for preset in desk.studio.presets.family(family)
    ]
    return gr.Radio(
        choices,
        value=matching_preset(desk, family),
        label=FAMILIES[family],
        info=_preset_says(desk, family),
        elem_id=f"preset-{family}",
        elem_classes="qs-choice",
        interactive=True,
    )


def _facts(changes: dict[str, Any]) -> str:
    """What a preset sets, in a few characters."""
    rank, tokens = changes.get("lora.rank"), changes.get("data.max_length")
    facts = [f"rank {rank}" if rank else "", f"{tokens} tok" if tokens else ""]
    return " · ".join(fact for fact in facts if fact)


def _preset_says(desk: Desk, family: str) -> str:
    name = matching_preset(desk, family)
    return next(
        (preset.says for preset in desk.studio.presets.family(family) if preset.name == name),
        "Your own values, no preset.",
    )


def _why_blocked(desk: Desk) -> Html:
    if not desk.draft["data.sources"]:
        return tag(
            "p", "Start waits for data: import a file on the Data page, or use the demo rows.", class_="qs-blocked"
        )
    if standing := desk.standing_errors():
        named = ", ".join(name.replace("-", " ") for name in standing)
        return tag(
            "p",
            f"Start is blocked by findings: {named}. Mend the rows, or accept them by name on the Data page.",
            class_="qs-blocked",
        )
    if desk.plan is None:
        return tag("p", "Start waits for settings that work; the plan says what is wrong.", class_="qs-blocked")
    if not desk.plan.fits:
        return tag(
            "p",
            "Start is blocked: the plan is over budget, and memory would run out. Change what the plan names.",
            class_="qs-blocked",
        )
    return Html("")


def _script(desk: Desk) -> str:
    return (desk.studio.assets / "chart.js").read_text(encoding="utf-8")
