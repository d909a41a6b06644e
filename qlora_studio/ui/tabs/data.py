"""The Data page: open rows, see them as conversations and tokens, import them, choose what the next run learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from qlora_studio.ui import form
from qlora_studio.ui.server.messages import speaking, tell
from qlora_studio.ui.server.session import Desk, Looked
from qlora_studio.ui.server.tick import Now, Slot, slot
from qlora_studio.ui.tabs import data_form
from qlora_studio.ui.tabs import import_rows as intake
from qlora_studio.ui.tabs.data_form import PARTS, SHARES, DataForm
from qlora_studio.ui.views import data as view
from qlora_studio.ui.views import tokens as token_view
from qlora_studio.ui.views.html import Html, join, page_head, says_error

QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


@dataclass(slots=True)
class DataTab:
    """The controls that others wire."""

    form: DataForm
    status: gr.HTML
    rows: gr.HTML
    tokens: gr.HTML
    count: gr.Button
    findings: gr.HTML
    accept: gr.CheckboxGroup
    remedies: gr.CheckboxGroup
    mend: gr.Button
    sets: gr.HTML

    @property
    def shown(self) -> list[gr.blocks.Block]:
        """What `render` answers for, in its order."""
        form = self.form
        asked = [form.name, form.bring_in, form.hub, form.map, *form.parts]
        return [self.status, self.rows, self.sets, *asked, form.chosen, *form.weights, form.mix_by]


def build(desk: Desk) -> DataTab:
    gr.HTML(page_head("Data", "Rows become conversations. You see what the model will learn before it does."))
    with gr.Row():
        with gr.Column(scale=4, min_width=310):
            source = data_form.build_source(desk)
        with gr.Column(scale=8, min_width=330):
            status = gr.HTML(elem_id="data-status")
            with gr.Tabs(elem_id="data-parts"):
                with gr.Tab("Rows", id="rows", elem_id="part-rows"):
                    rows = gr.HTML(elem_id="data-rows")
                with gr.Tab("Tokens", id="tokens", elem_id="part-tokens"):
                    tokens = gr.HTML(elem_id="data-tokens")
                    count = gr.Button("Count the tokens", size="sm", elem_id="data-count")
                with gr.Tab("Findings", id="findings", elem_id="part-findings"):
                    findings = gr.HTML(elem_id="data-findings")
                    info = form.field_info("data.accepted").description
                    remedies = gr.CheckboxGroup(
                        [],
                        label="Remedies",
                        info="Each changes the imported set, never your file, and the set remembers it.",
                        visible=False,
                        elem_id="data-remedies",
                        interactive=True,
                    )
                    mend = gr.Button("Mend the set", size="sm", visible=False, elem_id="data-mend")
                    accept = gr.CheckboxGroup(
                        [],
                        label="Train in spite of these",
                        info=info,
                        visible=False,
                        elem_id="data-accepted",
                        interactive=True,
                    )
                with gr.Tab("Imported sets", id="sets", elem_id="part-sets"):
                    sets = gr.HTML(elem_id="data-sets")
            made = data_form.build_mixture(desk, source)
    return DataTab(made, status, rows, tokens, count, findings, accept, remedies, mend, sets)


def wire(desk: Desk, tab: DataTab) -> list[Any]:
    """Connects the page's own controls. Returns the events after which the plan must be made anew."""
    controls = tab.form

    @speaking
    def look(file: str | None, path: str, format: str, *mapped: str | None) -> list[Any]:
        source = file or (path or "").strip()
        desk.look(intake.look_at(desk, source, format, mapped) if source else None)
        return render(desk)

    @speaking
    def bring_in(*values: Any) -> list[Any]:
        given: list[Any] = ["" if value is None else value for value in values]
        intake.import_rows(desk, *given)
        return render(desk)

    @speaking
    def use_demo() -> list[Any]:
        demo = desk.studio.data.demo()
        report = desk.studio.data.import_rows(str(demo.rows), name="demo")
        desk.change(dict(demo.settings))
        intake.take_in(desk, report.name)
        tell("The demo rows are here, with settings that suit them.")
        return render(desk)

    @speaking
    def choose(names: list[str]) -> list[Any]:
        known = {source["name"]: source for source in desk.draft["data.sources"]}
        desk.change({"data.sources": [known.get(name, {"name": name, "weight": 1.0}) for name in names]})
        return render(desk)

    @speaking
    def weigh(*weights: float | None) -> list[Any]:
        sources = [
            {**source, "weight": weight or 0}
            for source, weight in zip(desk.draft["data.sources"], weights, strict=False)
        ]
        form.build_config({**desk.draft, "data.sources": sources})
        desk.change({"data.sources": sources})
        return render(desk)

    @speaking
    def count() -> None:
        desk.count_tokens()

    @speaking
    def accept(names: list[str]) -> None:
        desk.change({"data.accepted": names})

    @speaking
    def mend(names: list[str]) -> list[Any]:
        intake.mend_sets(desk, names)
        return render(desk)

    given = [controls.file, controls.path, controls.format, *controls.parts]
    opened = [controls.file.upload, controls.file.clear, controls.path.submit, controls.format.input]
    for event in (*opened, *(part.input for part in controls.parts)):
        event(look, given, tab.shown, **QUIET)
    imported = controls.bring_in.click(bring_in, controls.asked, tab.shown, **QUIET)
    demo = controls.demo.click(use_demo, None, tab.shown, **QUIET)
    picked = controls.chosen.input(choose, controls.chosen, tab.shown, **QUIET)
    weighed = [
        event(weigh, controls.weights, tab.shown, **QUIET)
        for weight in controls.weights
        for event in (weight.submit, weight.blur)
    ]
    tab.count.click(count, None, None, **QUIET)
    mended = tab.mend.click(mend, tab.remedies, tab.shown, **QUIET)
    accepted = tab.accept.input(accept, tab.accept, None, **QUIET)
    return [imported, demo, picked, mended, accepted, *weighed]


def slots(tab: DataTab) -> list[Slot]:
    """The page as the desk has it, and the token job as it goes."""
    version: Any = lambda now: (now.desk.version, now.desk.tokens.counting)  # noqa: E731
    return [
        Slot(tab.shown, lambda now: render(now.desk), version),
        slot(tab.tokens, _tokens),
        slot(tab.count, lambda now: gr.update(interactive=bool(now.desk.draft["data.sources"])), version),
        Slot((tab.findings, tab.accept, tab.remedies, tab.mend), lambda now: _findings(now.desk), version),
    ]


def render(desk: Desk) -> list[Any]:
    """Everything the page shows of the desk, in the order of `DataTab.shown`."""
    reports, looked = desk.studio.data.sets(), desk.looked
    known = {report.name for report in reports}
    sources = [source for source in desk.draft["data.sources"] if source["name"] in known]
    names = [source["name"] for source in sources]
    several = len(sources) > 1
    status, rows = _file_views(desk, looked) if looked else _set_views(desk)
    return [
        status,
        rows,
        view.sets_table(reports, names),
        gr.update(placeholder=Path(looked.source).stem if looked else "my-rows"),
        gr.update(interactive=looked is not None and looked.can_be_tried),
        gr.update(visible=looked is not None and looked.hub),
        *_column_map(desk, looked),
        gr.update(choices=[report.name for report in reports], value=names),
        *(_share(sources, index, several) for index in range(SHARES)),
        gr.update(visible=several),
    ]


def _share(sources: Sequence[dict[str, Any]], index: int, several: bool) -> Any:
    if index >= len(sources):
        return gr.update(visible=False)
    return gr.update(visible=several, label=f"Share of {sources[index]['name']}", value=sources[index]["weight"])


def _column_map(desk: Desk, looked: Looked | None) -> list[Any]:
    """The frame and a dropdown for each part of the format in use."""
    parts = desk.studio.data.format_parts(looked.format_in_use) if looked and looked.names else ()
    updates = [gr.update(visible=bool(parts))]
    for index in range(PARTS):
        if looked is None or index >= len(parts):
            updates.append(gr.update(visible=False, choices=[], value=None))
            continue
        chosen = looked.columns.get(parts[index])
        choices = [("found by name", ""), *((name, name) for name in looked.names)]
        updates.append(gr.update(visible=True, label=parts[index], choices=choices, value=chosen or ""))
    return updates


def _file_views(desk: Desk, looked: Looked) -> tuple[Html, Html]:
    """Rows that were opened but are not imported."""
    name = looked.source if looked.hub else Path(looked.source).name
    refused = says_error(looked.refused, f"{name} cannot be imported like this") if looked.refused else Html("")
    if looked.hub:
        return join((refused, view.hub_waits(looked.source))), Html("")
    if looked.guess is None:
        return join((refused, view.columns_found(looked.names))), Html("")
    titles = {preset.name: preset.title for preset in desk.studio.presets.family("format")}
    said = join((refused, view.guess_line(looked.guess, titles), view.problems_card(looked.problems)))
    return said, view.conversations_list(looked.conversations)


def _set_views(desk: Desk) -> tuple[Html, Html]:
    """The chosen sets in figures and the first rows of the first of them, or an invitation."""
    chosen = desk.chosen_sets()
    if not chosen:
        return view.nothing_imported(), Html("")
    result = desk.tokens_known()
    tiles = view.report_tiles(chosen, result, desk.draft["data.eval_share"])
    notes = join(view.left_over(report) for report in chosen)
    return join((tiles, notes)), view.conversations_list(desk.studio.data.conversations(chosen[0].name, intake.ROWS))


def _tokens(now: Now) -> Html:
    desk = now.desk
    if desk.tokens.counted is not None:
        return token_view.counting(desk.studio.jobs.look(desk.tokens.counted.job).progress)
    if desk.tokens.problems:
        return says_error(desk.tokens.problems, "The tokens could not be counted")
    if desk.tokens.result is None:
        return token_view.not_counted(bool(desk.draft["data.sources"]))
    return token_view.token_page(desk.tokens.result, current=desk.tokens_known() is not None)


def _findings(desk: Desk) -> list[Any]:
    """The findings, a tick for each that would keep a run from starting, and the remedies there are."""
    if desk.tokens.result is None:
        hidden = gr.update(visible=False)
        return [token_view.not_counted(bool(desk.draft["data.sources"])), hidden, hidden, hidden]
    findings = desk.tokens.result.findings
    errors = [finding.name for finding in findings if finding.severity == "error"]
    titles = desk.studio.data.remedy_titles()
    offered = {finding.remedy: titles[finding.remedy] for finding in findings if finding.remedy in titles}
    accepted = [name for name in desk.draft["data.accepted"] if name in errors]
    return [
        view.findings_table(findings),
        gr.update(visible=bool(errors), choices=[(name.replace("-", " "), name) for name in errors], value=accepted),
        gr.update(visible=bool(offered), choices=[(title, name) for name, title in offered.items()], value=[]),
        gr.update(visible=bool(offered)),
    ]
