"""The controls of the Data page: where rows come from, how they are read, and how sets are mixed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from qlora_studio.ui import form
from qlora_studio.ui.server.session import Desk

FILE_TYPES = [".json", ".jsonl", ".csv", ".tsv", ".txt", ".md", ".parquet", ".arrow", ".gz", ".zip"]
SHARES = 8
"""Sets that can be mixed on the page."""
PARTS = 8
"""Most parts that a format has."""


@dataclass(slots=True)
class Source:
    """Where rows come from and how they are read."""

    file: gr.File
    path: gr.Textbox
    demo: gr.Button
    format: gr.Dropdown
    map: gr.Accordion
    parts: list[gr.Dropdown]
    name: gr.Textbox
    skip_bad: gr.Checkbox
    eval_file: gr.Textbox
    drop_overlap: gr.Checkbox
    hub: gr.Accordion
    hub_parts: list[gr.Textbox]
    bring_in: gr.Button

    @property
    def asked(self) -> list[gr.components.Component]:
        """What an import is asked to do, in the order of `data_tab.import_rows`."""
        return [self.name, self.skip_bad, self.eval_file, self.drop_overlap, *self.hub_parts]


@dataclass(slots=True)
class DataForm(Source):
    """All of it: the source, and what the next run learns from."""

    chosen: gr.Dropdown
    weights: list[gr.Number]
    mix_by: gr.components.Component
    eval_share: gr.components.Component


def build_source(desk: Desk) -> Source:
    file = gr.File(
        label="Your rows: JSONL, JSON, CSV, Parquet or text",
        file_types=FILE_TYPES,
        height=128,
        elem_id="data-file",
        interactive=True,
    )
    path = _line(
        "Or where they lie",
        "A file or folder on this machine, or a hub id such as owner/name. Enter opens it.",
        "data-path",
        placeholder="/home/me/rows.jsonl",
    )
    demo = gr.Button("Use the demo rows", size="sm", elem_id="data-demo")
    with gr.Group():
        titles = [
            ("Detect it", "auto"),
            *((preset.title, preset.name) for preset in desk.studio.presets.family("format")),
        ]
        format = gr.Dropdown(
            titles,
            value="auto",
            label="Format",
            info="How a row becomes a conversation. Detection looks at the rows; choose yourself where it errs.",
            elem_id="data-format",
            interactive=True,
        )
        with gr.Accordion("Which column holds what", open=True, visible=False, elem_id="data-map") as columns:
            parts = [
                gr.Dropdown(
                    [],
                    label=f"Part {index + 1}",
                    info="The column that holds this part, where its name is another.",
                    visible=False,
                    elem_id=f"data-part-{index + 1}",
                    interactive=True,
                )
                for index in range(PARTS)
            ]
        name = _line("Name of the set", "What it is called here; empty takes the file's name.", "data-name")
        skip_bad = gr.Checkbox(
            False,
            label="Leave out rows that cannot be read",
            info="Otherwise one bad row refuses the file, and you see which.",
            elem_id="data-skip-bad",
            interactive=True,
        )
    with gr.Accordion("A hub data set", open=True, visible=False, elem_id="data-hub") as hub:
        hub_parts = [
            _line("Subset", "Which part of the set, where it has several.", "data-subset"),
            _line("Split", "Which of its splits; empty takes train.", "data-split", placeholder="train"),
            _line("Revision", "A commit; empty takes the newest and pins it.", "data-revision"),
        ]
    with gr.Accordion("Rows to measure with", open=False, elem_id="data-eval"):
        eval_file = _line(
            "A file of their own", "Its rows measure the result; empty holds out a share instead.", "data-eval-file"
        )
        drop_overlap = gr.Checkbox(
            False,
            label="Leave out rows that stand in both",
            info="A prompt that is trained on measures nothing.",
            elem_id="data-drop-overlap",
            interactive=True,
        )
    bring_in = gr.Button("Import these rows", variant="primary", interactive=False, elem_id="data-import")
    return Source(
        file, path, demo, format, columns, parts, name, skip_bad, eval_file, drop_overlap, hub, hub_parts, bring_in
    )


def build_mixture(desk: Desk, source: Source) -> DataForm:
    with gr.Group(elem_id="data-use"):
        chosen = gr.Dropdown(
            [],
            value=[],
            multiselect=True,
            max_choices=SHARES,
            label="What the next run learns from",
            info="One set, or several in a mixture; each keeps its origin. A share of general rows keeps old skills.",
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
                    info="Relative to the other sets.",
                    visible=False,
                    min_width=130,
                    elem_id=f"data-weight-{index + 1}",
                    interactive=True,
                )
                for index in range(SHARES)
            ]
        with gr.Row():
            mix_by = form.make(form.BY_NAME["data.mix_by"], desk.draft["data.mix_by"])
            eval_share = form.make(form.BY_NAME["data.eval_share"], desk.draft["data.eval_share"])
    given = {name: getattr(source, name) for name in Source.__dataclass_fields__}
    return DataForm(**given, chosen=chosen, weights=weights, mix_by=mix_by, eval_share=eval_share)


def _line(label: str, info: str, elem_id: str, **more: Any) -> gr.Textbox:
    return gr.Textbox("", label=label, info=info, max_lines=1, elem_id=elem_id, interactive=True, **more)
