"""The Export page: the adapter, a merged model, a GGUF file or a pack of them, into a folder of the person's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from qlora_studio.core.errors import StudioError
from qlora_studio.core.exports import MERGE_CHOICES, ExportWish, LoadCommand, find_export_kind, find_gguf, find_merge
from qlora_studio.core.jobs import JobRef
from qlora_studio.core.verdict import could_agree_better
from qlora_studio.core.words import without_quotes
from qlora_studio.ui import fields
from qlora_studio.ui.server.messages import notify
from qlora_studio.ui.server.sync import Page, Scene, Slot, Updates, slot
from qlora_studio.ui.server.view import View
from qlora_studio.ui.server.workspace import Workspace
from qlora_studio.ui.views import export as view
from qlora_studio.ui.views.export import Note
from qlora_studio.ui.views.html import Html, gib, page_head

CHECK_PROMPTS = 3
"""What chat and export are both asked."""


@dataclass(slots=True)
class ExportTab:
    """The controls that others wire."""

    run: gr.Dropdown
    weights: gr.Dropdown
    what: gr.Radio
    merge: gr.Radio
    gguf: gr.Dropdown
    parts: gr.CheckboxGroup
    folder: gr.Textbox
    check: gr.Checkbox
    start: gr.Button
    stop: gr.Button
    again: gr.Button
    notes: gr.HTML
    readiness: gr.HTML
    state: gr.HTML


def build() -> ExportTab:
    gr.HTML(page_head("Export", "Written to your disk only; nothing is uploaded."))
    with gr.Row():
        with gr.Column(scale=6, min_width=330), gr.Group():
            run = gr.Dropdown(
                [], value=None, label="Run", info="Whose adapter is exported.", elem_id="export-run", interactive=True
            )
            weights = gr.Dropdown(
                [("the adapter", "")], value="", label="Weights", info="Its adapter, or a checkpoint it has kept.",
                elem_id="export-weights", interactive=True,
            )  # fmt: skip
            what = gr.Radio(
                view.cards(wish_of(View(), None), None, None),
                value=View().export_what,
                label="What",
                info="A merged model or GGUF file runs alone; an adapter stays small and needs its base.",
                elem_id="export-what",
                elem_classes="qs-choice",
                interactive=True,
            )
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
            parts = gr.CheckboxGroup(
                view.part_items(),
                value=list(View().export_parts),
                label="In the pack",
                info="Beside them: a model card, the licence, and a Modelfile for Ollama.",
                elem_id="export-parts",
                interactive=True,
                visible=False,
            )
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
        with gr.Column(scale=6, min_width=330):
            notes = gr.HTML(elem_id="export-checks")
            state = gr.HTML(elem_id="export-state")
            again = gr.Button("Export again as chatted", size="sm", visible=False, elem_id="export-again-btn")
    with gr.Row(elem_id="export-bar", elem_classes="qs-action-bar"):
        readiness = gr.HTML(elem_id="export-readiness", min_width=200)
        stop = gr.Button("Stop the export", variant="stop", visible=False, elem_id="export-stop-btn", min_width=120)
        start = gr.Button("Export", variant="primary", interactive=False, elem_id="export-btn", min_width=160)
    return ExportTab(run, weights, what, merge, gguf, parts, folder, check, start, stop, again, notes, readiness, state)


def wish_of(shown: View, suggested: str | None) -> ExportWish:
    """What this tab would export; `suggested` is the merge that suits the run, where nothing was chosen."""
    merge = find_merge(shown.export_merge or suggested or MERGE_CHOICES[0].name)
    kind, gguf = find_export_kind(shown.export_what), find_gguf(shown.export_gguf)
    return ExportWish(kind, merge.into, gguf, shown.export_parts, shown.export_weights)


def slots(tab: ExportTab) -> list[Slot]:
    return [
        slot(
            tab.run,
            lambda scene: gr.update(choices=scene.world.with_adapter, value=chosen_run(scene)),
            lambda scene: (scene.world.with_adapter, chosen_run(scene)),
        ),
        slot(
            tab.weights,
            lambda scene: gr.update(choices=scene.world.weights(chosen_run(scene)), value=scene.view.export_weights),
            lambda scene: (scene.world.weights(chosen_run(scene)), scene.view.export_weights),
        ),
        slot(
            tab.what,
            lambda scene: gr.update(choices=view.cards(_wish(scene), *_sizes(scene)), value=scene.view.export_what),
            lambda scene: (chosen_run(scene), scene.view.export_what, scene.view.export_gguf, scene.view.export_parts),
        ),
        slot(tab.merge, _merge, _export_mark),
        slot(tab.gguf, _gguf, lambda scene: (scene.view.export_what, scene.view.export_gguf, scene.view.export_parts)),
        slot(
            tab.parts,
            lambda scene: gr.update(visible=scene.view.export_what == "pack", value=list(scene.view.export_parts)),
            lambda scene: (scene.view.export_what, scene.view.export_parts),
        ),
        slot(tab.folder, _folder, _export_mark),
        slot(tab.notes, _notes, lambda scene: (_export_mark(scene), scene.view.export_folder)),
        slot(tab.readiness, _readiness, lambda scene: (_export_mark(scene), scene.view.export_folder)),
        Slot((tab.start, tab.stop), lambda scene: _buttons(scene, tab)),
        slot(tab.state, _state),
        slot(tab.again, lambda scene: gr.update(visible=_disagrees(scene))),
    ]


def wire(page: Page, tab: ExportTab) -> None:
    workspace = page.workspace

    def choose(view_: View, run: str | None, what: str, gguf: str, parts: list[str]) -> None:
        if run != view_.export_run:
            view_.export_merge, view_.export_weights = None, ""  # another run, another measurement
        view_.export_run, view_.export_what, view_.export_gguf = run, what, gguf
        view_.export_parts = tuple(parts)
        view_.export_folder = None

    def choose_merge(view_: View, merge: str) -> None:
        view_.export_merge = merge
        view_.export_folder = None

    def choose_weights(view_: View, weights: str | None) -> None:
        view_.export_weights = weights or ""

    def retarget(view_: View, folder: str) -> None:
        view_.export_folder = folder

    def go(view_: View, run: str | None, folder: str, check: bool) -> None:
        view_.export_run = run
        start(workspace, run, _wish(Scene(workspace, workspace.world(), view_)), folder, check=check)
        view_.export_folder = None

    def go_as_chatted(view_: View) -> None:
        view_.export_merge, view_.export_folder = "as-chatted", None
        scene = Scene(workspace, workspace.world(), view_)
        start(workspace, chosen_run(scene), _wish(scene), str(_default_folder(scene) or ""), check=True)

    def stop(view_: View) -> None:
        scene = Scene(workspace, workspace.world(), view_)
        if (job := scene.world.newest_ref(chosen_run(scene), "exports")) is not None:
            workspace.studio.jobs.stop(job)

    for event in (tab.run.input, tab.what.input, tab.gguf.input, tab.parts.input):
        page.on(event, choose, [tab.run, tab.what, tab.gguf, tab.parts])
    page.on(tab.merge.input, choose_merge, [tab.merge])
    page.on(tab.weights.input, choose_weights, [tab.weights])
    page.on(tab.folder.input, retarget, [tab.folder], trigger_mode="always_last")
    page.on(tab.start.click, go, [tab.run, tab.folder, tab.check])
    page.on(tab.again.click, go_as_chatted)
    page.on(tab.stop.click, stop)


def start(workspace: Workspace, run: str | None, wish: ExportWish, folder: str, *, check: bool) -> JobRef:
    """Starts the export. Raises a StudioError where something stands against it."""
    if not run:
        raise StudioError("There is no run to export.", "Train one first, or choose one above.")
    folder = without_quotes(folder)
    if not folder:
        raise StudioError("The folder is empty.", "Name a new folder.")
    job = workspace.world().newest_job(run, "exports")
    if job is not None and job.at_work:
        raise StudioError("An export is under way.", "Wait for it, or stop it.")
    compares = wish.kind.compares_with_chat
    prompts = workspace.studio.data.demo().prompts[:CHECK_PROMPTS] if check and compares else ()
    if compares:
        workspace.refuse_while_training("Export")
        workspace.chat.close()
    started = workspace.studio.exports.start(run, wish, folder, prompts)
    notify("The export has begun.")
    return started


def chosen_run(scene: Scene) -> str | None:
    """The run this tab would export."""
    names = scene.world.with_adapter
    return scene.view.export_run if scene.view.export_run in names else next(iter(names), None)


def default_folder(exports: Path, run: str, wish: ExportWish) -> Path:
    """`<home>/exports/<run>-<what>`, numbered where that is taken."""
    words = [run, wish.kind.name]
    if wish.kind.name == "gguf":
        words.append(wish.gguf.lower())
    if wish.kind.merges and wish.merge_into == "original":
        words.append("original")
    stem, number = exports / "-".join(words), 1
    while (place := stem if number == 1 else stem.with_name(f"{stem.name}-{number}")).exists():
        number += 1
    return place


def find_notes(workspace: Workspace, run_name: str, wish: ExportWish, folder: str) -> list[Note]:
    """What to know before this export."""
    run = workspace.studio.runs.open(run_name)
    place = Path(without_quotes(folder)).expanduser()
    readiness = workspace.studio.exports.readiness(run.name, wish, str(place))
    adapter, merged = workspace.studio.exports.sizes(run.name)
    notes = [
        Note("good", f"The adapter is saved: {gib(adapter)}, rank {run.config.lora.rank}, {run.progress.step} steps.")
    ]
    notes += [Note("bad", fields.sentence(problem)) for problem in readiness.blocks]
    if merged is None and wish.kind.needs_base:
        notes.append(
            Note("warn", f"The base {run.config.model.base} is not on this machine; a merge fetches it first.")
        )
    elif merged is not None and wish.kind.needs_base:
        notes.append(Note("good", f"The base {run.config.model.base} is here: {gib(merged)}."))
    if run.state not in ("finished", "stopped"):
        notes.append(Note("warn", f"The run is {run.state}; what it saved last is exported."))
    notes.append(_folder_note(place))
    if wish.kind.name == "pack" and not wish.parts:
        notes.append(Note("bad", "A pack holds at least one part; choose one."))
    if wish.kind.merges:
        into, why = workspace.studio.exports.suggest_merge(run.name)
        if wish.merge_into == into:
            notes.append(Note("good", why))
        elif wish.merge_into == "original":
            says = "With the original weights answers can differ from the chat's; the comparison says how much."
            notes.append(Note("warn", says))
    return [*notes, Note("warn", "The base's licence stays in force for what you make of it.")]


def _folder_note(place: Path) -> Note:
    if not place.is_absolute():
        return Note("bad", "Give the folder with its whole path.")
    if place.exists() and (place.is_file() or any(place.iterdir())):
        return Note("bad", "The folder is not empty; name a new one.")
    return Note("good", "The folder is new or empty.")


def _exporting(scene: Scene) -> bool:
    job = scene.world.newest_job(chosen_run(scene), "exports")
    return job is not None and job.at_work


def _export_mark(scene: Scene) -> object:
    """An export that has ended leaves a folder behind, so another one is offered."""
    shown = scene.view
    chosen = (shown.export_what, shown.export_merge, shown.export_gguf, shown.export_parts)
    job = scene.world.newest_job(chosen_run(scene), "exports")
    return chosen_run(scene), chosen, job and job.state, scene.world.training is not None


def _suggested(scene: Scene) -> str | None:
    """The name of the merge that suits the run."""
    run = chosen_run(scene)
    if run is None:
        return None
    into, _ = scene.workspace.studio.exports.suggest_merge(run)
    return next(choice.name for choice in MERGE_CHOICES if choice.into == into)


def _wish(scene: Scene) -> ExportWish:
    return wish_of(scene.view, _suggested(scene))


def _merge(scene: Scene) -> dict[str, Any]:
    chosen = scene.view.export_merge or _suggested(scene) or MERGE_CHOICES[0].name
    return gr.update(visible=find_export_kind(scene.view.export_what).merges, value=chosen)


def _gguf(scene: Scene) -> dict[str, Any]:
    packed = scene.view.export_what == "pack" and "gguf" in scene.view.export_parts
    return gr.update(visible=scene.view.export_what == "gguf" or packed, value=scene.view.export_gguf)


def _sizes(scene: Scene) -> tuple[int | None, int | None]:
    run = chosen_run(scene)
    return scene.workspace.studio.exports.sizes(run) if run else (None, None)


def _default_folder(scene: Scene) -> Path | None:
    run = chosen_run(scene)
    return default_folder(scene.workspace.studio.home.exports, run, _wish(scene)) if run else None


def _folder(scene: Scene) -> str:
    """Where this tab would export to."""
    typed = scene.view.export_folder
    return typed if typed is not None else str(_default_folder(scene) or "")


def _notes(scene: Scene) -> Html:
    run = chosen_run(scene)
    if run is None:
        return view.nothing_to_export()
    return view.checklist(find_notes(scene.workspace, run, _wish(scene), _folder(scene)))


def _readiness(scene: Scene) -> Html:
    """What the export becomes and takes, in one sentence."""
    run = chosen_run(scene)
    if run is None:
        return Html("")
    wish = _wish(scene)
    checks = CHECK_PROMPTS if wish.kind.compares_with_chat else 0
    return view.readiness_line(scene.workspace.studio.exports.readiness(run, wish, _folder(scene), checks).sentence)


def _buttons(scene: Scene, tab: ExportTab) -> Updates:
    exporting, run = _exporting(scene), chosen_run(scene)
    job = scene.world.newest_job(run, "exports")
    stopping = job is not None and job.state == "stopping"
    return {
        tab.start: gr.update(interactive=run is not None and not exporting and scene.world.training is None),
        tab.stop: gr.update(
            visible=exporting, interactive=not stopping, value="Stopping …" if stopping else "Stop the export"
        ),
    }


def _state(scene: Scene) -> Html:
    run = chosen_run(scene)
    job = scene.world.newest_job(run, "exports")
    return view.export_card(job, _commands(scene, run)) if job and run else Html("")


def _commands(scene: Scene, run: str) -> list[LoadCommand]:
    """How the newest export is opened; nothing where it is not there."""
    ref, job = scene.world.newest_ref(run, "exports"), scene.world.newest_job(run, "exports")
    if ref is None or job is None or not job.progress.exported:
        return []
    exports = scene.workspace.studio.exports
    return exports.load_commands(run, exports.wish_of(ref), job.progress.exported[-1].path)


def _disagrees(scene: Scene) -> bool:
    """Whether the newest export says something else than the chat, and another one would not."""
    job = scene.world.newest_job(chosen_run(scene), "exports")
    return job is not None and job.state == "finished" and any(map(could_agree_better, job.progress.checks))
