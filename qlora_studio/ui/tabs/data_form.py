"""The controls of the Data page: where rows come from, how they are read, and how sets are mixed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from qlora_studio.ui import fields, form
from qlora_studio.ui.server.workspace import Workspace

FILE_TYPES = [".json", ".jsonl", ".csv", ".tsv", ".txt", ".md", ".parquet", ".arrow", ".gz", ".zip"]
WEIGHTS = 8
"""Sets that can be mixed on the page."""
PARTS = 8
"""Most parts that a format has."""


@dataclass(slots=True)
class SourceForm:
    """Where rows come from and how they are read."""

    file: gr.File
    path: gr.Textbox
    demo: gr.Button
    format: gr.Dropdown
    mapping: gr.Accordion
    parts: list[gr.Dropdown]
    name: gr.Textbox
    skip_bad: gr.Checkbox
    eval_file: gr.Textbox
    drop_overlap: gr.Checkbox
    hub: gr.Accordion
    hub_parts: list[gr.Textbox]

    @property
    def options(self) -> list[gr.components.Component]:
        """What an import is asked to do, in the order of `ImportOptions`."""
        return [self.name, self.skip_bad, self.eval_file, self.drop_overlap, *self.hub_parts]


@dataclass(slots=True)
class MixtureForm:
    """What the next run learns from."""

    chosen: gr.Dropdown
    weights: list[gr.Textbox]
    mix_by: gr.components.Component
    eval_share: gr.components.Component


def build_source(workspace: Workspace) -> SourceForm:
    file = gr.File(
        label="Your rows: JSONL, JSON, CSV, Parquet or text",
        file_types=FILE_TYPES,
        height=128,
        elem_id="data-file",
        interactive=True,
    )
    path = _line(
        "Path or Hub ID",
        "A file or folder on this machine, or a data set of the hub such as owner/name. Enter opens it.",
        "data-path",
        placeholder="/home/me/rows.jsonl",
    )
    demo = gr.Button("Use the demo rows", size="sm", elem_id="data-demo")
    with gr.Group():
        presets = workspace.studio.presets.family("format")
        format = gr.Dropdown(
            [("Detect it", "auto"), *((preset.title, preset.name) for preset in presets)],
            value="auto",
            label="Format",
            info="How a row becomes a conversation. Detection looks at the rows; choose yourself where it errs.",
            elem_id="data-format",
            interactive=True,
        )
        with gr.Accordion("Column mapping", open=True, visible=False, elem_id="data-map") as mapping:
            parts = [_part(index) for index in range(PARTS)]
        name = _line("Dataset name", "What it is called here; empty takes the file's name.", "data-name")
        skip_bad = gr.Checkbox(
            False,
            label="Skip rows that cannot be read",
            info="Otherwise one bad row refuses the file, and you see which.",
            elem_id="data-skip-bad",
            interactive=True,
        )
    with gr.Accordion("A data set of the hub", open=True, visible=False, elem_id="data-hub") as hub:
        hub_parts = [
            _line("Subset", "Which part of the set, where it has several.", "data-subset"),
            _line("Split", "Which of its splits; empty takes train.", "data-split", placeholder="train"),
            _line("Revision", "A commit; empty takes the newest and pins it.", "data-revision"),
        ]
    with gr.Accordion("Evaluation file", open=False, elem_id="data-eval"):
        eval_file = _line(
            "Path", "Its rows are evaluated on, never trained; empty holds out a share instead.", "data-eval-file"
        )
        drop_overlap = gr.Checkbox(
            False,
            label="Drop rows that stand in both",
            info="A prompt that is trained on measures nothing.",
            elem_id="data-drop-overlap",
            interactive=True,
        )
    return SourceForm(
        file, path, demo, format, mapping, parts, name, skip_bad, eval_file, drop_overlap, hub, hub_parts
    )  # fmt: skip


def build_mixture(workspace: Workspace) -> MixtureForm:
    with gr.Group(elem_id="data-use"):
        chosen = gr.Dropdown(
            [],
            value=[],
            multiselect=True,
            max_choices=WEIGHTS,
            label="Training data",
            info="One set, or several in a mixture; each keeps its origin. A share of general rows keeps old skills.",
            elem_id="data-sources",
            interactive=True,
        )
        with gr.Row():
            weights = [
                _line(
                    f"Weight {index + 1}", "Relative to the other sets.", f"data-weight-{index + 1}", visible=False,
                    min_width=130,
                )
                for index in range(WEIGHTS)
            ]  # fmt: skip
        with gr.Row():
            mix_by = form.make(fields.BY_NAME["data.mix_by"], workspace.draft["data.mix_by"])
            eval_share = form.make(fields.BY_NAME["data.eval_share"], workspace.draft["data.eval_share"])
    return MixtureForm(chosen, weights, mix_by, eval_share)


def _part(index: int) -> gr.Dropdown:
    return gr.Dropdown(
        [],
        label=f"Part {index + 1}",
        info="The column that holds this part, where its name is another.",
        visible=False,
        elem_id=f"data-part-{index + 1}",
        interactive=True,
    )


def _line(label: str, info: str, elem_id: str, **more: Any) -> gr.Textbox:
    return gr.Textbox("", label=label, info=info, max_lines=1, elem_id=elem_id, interactive=True, **more)
