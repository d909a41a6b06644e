"""The Data page: open a file, see its rows as conversations, import it, choose what the next run learns from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from qlora_studio.core.errors import StudioError
from qlora_studio.ui import form
from qlora_studio.ui.desk import Desk, Looked
from qlora_studio.ui.live import Slot
from qlora_studio.ui.speaking import sentences, speaking, tell
from qlora_studio.ui.views import data as view
from qlora_studio.ui.views.html import Html, join, page_head, says_error

FILE_TYPES = [".json", ".jsonl", ".csv", ".tsv", ".txt", ".md", ".parquet", ".arrow", ".gz", ".zip"]
SHARES = 8
"""Sets that can be mixed on the page."""
ROWS = 12
"""Rows in the preview."""
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


@dataclass(slots=True)
class DataTab:
    """The controls that others wire."""

    file: gr.File
    path: gr.Textbox
    format: gr.Radio
    columns: gr.Textbox
    name: gr.Textbox
    skip_bad: gr.Checkbox
    bring_in: gr.Button
    demo: gr.Button
    status: gr.HTML
    rows: gr.HTML
    sets: gr.HTML
    chosen: gr.Dropdown
    weights: list[gr.Number]
    mix_by: gr.components.Component
    eval_share: gr.components.Component

    @property
    def shown(self) -> list[gr.blocks.Block]:
        """What `render` answers for, in its order."""
        return [self.status, self.rows, self.sets, self.name, self.bring_in, self.chosen, *self.weights, self.mix_by]


def build(desk: Desk) -> DataTab:
    titles = [("Detect it", "auto"), *((preset.title, preset.name) for preset in desk.studio.presets("format"))]
    gr.HTML(page_head("Data", "Rows become conversations. You see what the model will learn before it does."))
    with gr.Row():
        with gr.Column(scale=4, min_width=310):
            file = gr.File(
                label="Your rows: JSONL, JSON, CSV, Parquet or text",
                file_types=FILE_TYPES,
                height=128,
                elem_id="data-file",
            )
            path = gr.Textbox(
                label="Or where they lie",
                info="A file on this machine; Enter opens it.",
                max_lines=1,
                placeholder="/home/me/rows.jsonl",
                elem_id="data-path",
                interactive=True,
            )
            demo = gr.Button("Use the demo rows", size="sm", elem_id="data-demo")
            with gr.Group():
                format = gr.Radio(
                    titles,
                    value="auto",
                    label="Format",
                    info="How a row becomes a conversation. Detection looks at the rows; choose yourself where it errs.",
                    elem_id="data-format",
                    interactive=True,
                )
                columns = gr.Textbox(
                    label="Columns",
                    info="Only where your names differ: part = your column, such as instruction=question, output=answer.",
                    max_lines=1,
                    elem_id="data-columns",
                    interactive=True,
                )
                name = gr.Textbox(
                    label="Name of the set",
                    info="What it is called here; empty takes the file's name.",
                    max_lines=1,
                    elem_id="data-name",
                    interactive=True,
                )
                skip_bad = gr.Checkbox(
                    False,
                    label="Leave out rows that cannot be read",
                    info="Otherwise one bad row refuses the file, and you see which.",
                    elem_id="data-skip-bad",
                    interactive=True,
                )
            bring_in = gr.Button("Import these rows", variant="primary", interactive=False, elem_id="data-import")
        with gr.Column(scale=8, min_width=330):
            status = gr.HTML(elem_id="data-status")
            with gr.Tabs(elem_id="data-parts"):
                with gr.Tab("Rows", id="rows", elem_id="part-rows"):
                    rows = gr.HTML(elem_id="data-rows")
                with gr.Tab("Imported sets", id="sets", elem_id="part-sets"):
                    sets = gr.HTML(elem_id="data-sets")
            with gr.Group(elem_id="data-use"):
                chosen = gr.Dropdown(
                    [],
                    value=[],
                    multiselect=True,
                    max_choices=SHARES,
                    label="What the next run learns from",
                    info="One set, or several in a mixture; each keeps its origin.",
                    elem_id="data-sources",
                    interactive=True,
                )
                with gr.Row():
                    weights = [
                        gr.Number(
                            1.0,
                            minimum=0,
                            step=0.1,
                            label=f"Share {index + 1}",
                            info="Share in the mixture, relative to the others.",
                            visible=False,
                            interactive=True,
                            min_width=130,
                            elem_id=f"data-weight-{index + 1}",
                        )
                        for index in range(SHARES)
                    ]
                with gr.Row():
                    mix_by = form.make(form.BY_NAME["data.mix_by"], desk.draft["data.mix_by"])
                    eval_share = form.make(form.BY_NAME["data.eval_share"], desk.draft["data.eval_share"])
    return DataTab(
        file,
        path,
        format,
        columns,
        name,
        skip_bad,
        bring_in,
        demo,
        status,
        rows,
        sets,
        chosen,
        weights,
        mix_by,
        eval_share,
    )


def wire(desk: Desk, tab: DataTab) -> list[Any]:
    """Connects the page's own controls. Returns the events after which the plan must be made anew."""

    @speaking
    def look(file: str | None, path: str, format: str, columns: str) -> list[Any]:
        source = file or path.strip()
        desk.look(look_at(desk, source, format, columns) if source else None)
        return render(desk)

    @speaking
    def bring_in(format: str, columns: str, name: str, skip_bad: bool) -> list[Any]:
        if desk.looked is None:
            raise StudioError("There is no file to import.", "Drop one on the left, or type its path.")
        try:
            report = desk.studio.import_data(
                desk.looked.source, name=name.strip(), format=format, columns=parse_columns(columns), skip_bad=skip_bad
            )
        except StudioError as error:
            desk.look(replace(desk.looked, refused=sentences(error)))
            return render(desk)
        take_in(desk, report.name)
        tell(
            f"{report.rows} rows are imported as '{report.name}'."
            if not report.unchanged
            else f"'{report.name}' was here already, unchanged."
        )
        return render(desk)

    @speaking
    def use_demo() -> list[Any]:
        report = desk.studio.import_data(str(desk.studio.demo().rows), name="demo")
        take_in(desk, report.name)
        desk.change(desk.studio.demo().settings)
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

    given = [tab.file, tab.path, tab.format, tab.columns]
    for event in (tab.file.upload, tab.file.clear, tab.path.submit, tab.format.input, tab.columns.submit):
        event(look, given, tab.shown, **QUIET)
    imported = tab.bring_in.click(bring_in, [tab.format, tab.columns, tab.name, tab.skip_bad], tab.shown, **QUIET)
    demo = tab.demo.click(use_demo, None, tab.shown, **QUIET)
    picked = tab.chosen.input(choose, tab.chosen, tab.shown, **QUIET)
    weighed = [weight.submit(weigh, tab.weights, tab.shown, **QUIET) for weight in tab.weights]
    weighed += [weight.blur(weigh, tab.weights, tab.shown, **QUIET) for weight in tab.weights]
    return [imported, demo, picked, *weighed]


def look_at(desk: Desk, source: str, format: str, columns: str) -> Looked:
    """A file without importing it; where it cannot be read as a whole, the sentences that say why."""
    try:
        return Looked(
            source, *desk.studio.preview_data(source, format=format, columns=parse_columns(columns), rows=ROWS)
        )
    except StudioError as error:
        return Looked(source, None, [], [], sentences(error))


def take_in(desk: Desk, name: str) -> None:
    """Makes a set the one the next run learns from; others are added to it by hand."""
    desk.look(None)
    desk.change({"data.sources": [{"name": name, "weight": 1.0}]})


def slots(tab: DataTab) -> list[Slot]:
    return [Slot(tab.shown, lambda now: render(now.desk), lambda now: now.desk.version)]


def render(desk: Desk) -> list[Any]:
    """Everything the page shows of the desk, in the order of `DataTab.shown`."""
    reports = desk.studio.datasets()
    sources = [source for source in desk.draft["data.sources"] if source["name"] in {report.name for report in reports}]
    names = [source["name"] for source in sources]
    several = len(sources) > 1
    weights = [
        gr.update(
            visible=several and index < len(sources),
            label=names[index] if index < len(names) else "",
            value=sources[index]["weight"] if index < len(sources) else 1.0,
        )
        for index in range(SHARES)
    ]
    status, rows = _file_views(desk, desk.looked) if desk.looked else _set_views(desk)
    name = Path(desk.looked.source).stem if desk.looked else ""
    return [
        status,
        rows,
        view.sets_table(reports, names),
        gr.update(placeholder=name or "my-rows"),
        gr.update(interactive=desk.looked is not None and desk.looked.guess is not None),
        gr.update(choices=[report.name for report in reports], value=names),
        *weights,
        gr.update(visible=several),
    ]


def parse_columns(text: str) -> dict[str, str]:
    """`instruction=question, output=answer` as a map. Raises a StudioError for anything else."""
    pairs = [pair.strip() for pair in text.split(",") if pair.strip()]
    columns = {}
    for pair in pairs:
        part, equals, column = (piece.strip() for piece in pair.partition("="))
        if not (part and equals and column):
            raise StudioError(
                f"'{pair}' does not say which column is meant.",
                "Write part=column, such as instruction=question.",
                field="columns",
            )
        columns[part] = column
    return columns


def _file_views(desk: Desk, looked: Looked) -> tuple[Html, Html]:
    """A file that was opened but is not imported."""
    refused = (
        says_error(looked.refused, f"{Path(looked.source).name} cannot be imported like this")
        if looked.refused
        else Html("")
    )
    if looked.guess is None:
        return refused, view.conversations_list([])
    titles = {preset.name: preset.title for preset in desk.studio.presets("format")}
    return join(
        (refused, view.guess_line(looked.guess, titles), view.problems_card(looked.problems))
    ), view.conversations_list(looked.conversations)


def _set_views(desk: Desk) -> tuple[Html, Html]:
    """The first of the chosen sets, or an invitation."""
    chosen = desk.chosen_sets()
    if not chosen:
        return view.nothing_imported(), Html("")
    first = chosen[0]
    tiles = view.report_tiles(first, None, desk.draft["data.eval_share"])
    return join((tiles, view.left_over(first))), view.conversations_list(desk.studio.conversations(first.name, ROWS))
