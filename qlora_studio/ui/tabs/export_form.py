"""The controls of the Export page, group by group."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from qlora_studio.core.exports import MERGE_CHOICES
from qlora_studio.ui.server.export import export_options
from qlora_studio.ui.server.view import View
from qlora_studio.ui.views import export as view


@dataclass(frozen=True, slots=True)
class ExportChoice:
    """What is exported, and in which form."""

    run: gr.Dropdown
    weights: gr.Dropdown
    what: gr.Radio
    merge: gr.Radio
    gguf: gr.Dropdown
    importance: gr.Checkbox
    parts: gr.CheckboxGroup


@dataclass(frozen=True, slots=True)
class ExportTarget:
    """Where it is written, and whether it is checked."""

    folder: gr.Textbox
    check: gr.Checkbox


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """An adapter that was trained somewhere else."""

    folder: gr.Textbox
    base: gr.Textbox
    adopt: gr.Button


@dataclass(frozen=True, slots=True)
class Several:
    """Runs whose adapters become one."""

    runs: gr.Dropdown
    weights: gr.Textbox
    how: gr.Radio
    combine: gr.Button


def build_choice() -> ExportChoice:
    """Run, weights, kind, and what the kind asks for."""
    run = gr.Dropdown(
        [], value=None, label="Run", info="Whose adapter is exported.", elem_id="export-run", interactive=True
    )
    weights = gr.Dropdown(
        [("the adapter", "")], value="", label="Weights", info="Its adapter, or a checkpoint it has kept.",
        elem_id="export-weights", interactive=True,
    )  # fmt: skip
    what = gr.Radio(
        view.cards(export_options(View(), None), None),
        value=View().export_what,
        label="What",
        info="A merged model or GGUF file runs alone; an adapter stays small and needs its base.",
        elem_id="export-what",
        elem_classes="qs-choice",
        interactive=True,
    )
    return ExportChoice(run, weights, what, *_build_details())


def _build_details() -> tuple[gr.Radio, gr.Dropdown, gr.Checkbox, gr.CheckboxGroup]:
    """What only some kinds ask for: the merge, the GGUF type and its matrix, the parts of a pack."""
    merge = gr.Radio(
        view.merge_cards(),
        value=MERGE_CHOICES[0].name,
        label="Weights that take the adapter",
        info="The comparison after the export measures what the choice means for this run.",
        elem_id="export-merge",
        elem_classes="qs-choice qs-choice-wide",
        interactive=True,
    )
    gguf = gr.Dropdown(
        view.gguf_items(),
        value=View().export_gguf,
        label="GGUF type",
        info="How the numbers in the file are kept: fewer bits, smaller file.",
        elem_id="export-gguf",
        interactive=True,
        visible=False,
    )
    importance = gr.Checkbox(
        False,
        label="Importance matrix",
        info="Reads training rows first and keeps best the columns that count for them. The same size, a little longer.",
        elem_id="export-importance",
        interactive=True,
        visible=False,
    )
    parts = gr.CheckboxGroup(
        view.part_items(),
        value=list(View().export_parts),
        label="In the pack",
        info="Beside them: a model card, the licence, and a Modelfile for Ollama.",
        elem_id="export-parts",
        interactive=True,
        visible=False,
    )
    return merge, gguf, importance, parts


def build_target() -> ExportTarget:
    """The folder, and whether chat and export are compared."""
    folder = gr.Textbox(
        label="Folder",
        info="New or empty; an export never mixes with what is there.",
        max_lines=1,
        elem_id="export-folder",
        interactive=True,
    )
    check = gr.Checkbox(
        True,
        label="Compare with the chat",
        info="Asks the chat and the export the same, and fails an export that lost what was trained.",
        elem_id="export-check",
        interactive=True,
    )
    return ExportTarget(folder, check)


def build_elsewhere() -> Elsewhere:
    """A closed fold in which an adapter's folder becomes a run."""
    with gr.Accordion("An adapter from elsewhere", open=False, elem_id="export-elsewhere"):
        folder = gr.Textbox(
            label="Its folder",
            info="In PEFT's format. It becomes a run, to chat with, evaluate and export.",
            max_lines=1,
            elem_id="adopt-folder",
            interactive=True,
        )
        base = gr.Textbox(
            label="Its base",
            info="Folder or hub id; empty takes the one that the adapter names.",
            max_lines=1,
            elem_id="adopt-base",
            interactive=True,
        )
        return Elsewhere(folder, base, gr.Button("Make a run of it", size="sm", elem_id="adopt-btn"))


def build_several() -> Several:
    """A closed fold in which the adapters of several runs become one."""
    with gr.Accordion("Several adapters as one", open=False, elem_id="export-several"):
        runs = gr.Dropdown(
            [],
            value=[],
            multiselect=True,
            label="Runs",
            info="Two or more of one base. What comes of them is a run, to chat with, evaluate and export.",
            elem_id="combine-runs",
            interactive=True,
        )
        weights = gr.Textbox(
            label="Weights",
            info="One for each, with commas between, such as 0.7, 0.3; empty: 1 each.",
            max_lines=1,
            elem_id="combine-weights",
            interactive=True,
        )
        how = gr.Radio(
            [("Side by side: exactly the weighted sum", "cat"), ("Factors added, at one rank", "linear")],
            value="cat",
            label="How",
            elem_id="combine-how",
            interactive=True,
        )
        return Several(runs, weights, how, gr.Button("Make a run of them", size="sm", elem_id="combine-btn"))
