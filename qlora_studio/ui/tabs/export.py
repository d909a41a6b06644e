"""The Export page: the adapter, a merged model, a GGUF file or a pack of them, into a folder of the person's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from qlora_studio.core.errors import StudioError
from qlora_studio.core.exports import MERGE_CHOICES, ExportOptions, find_export_kind, parse_weights
from qlora_studio.core.jobs import CombineHow
from qlora_studio.core.words import without_quotes
from qlora_studio.ui.server.export import (
    CHECK_PROMPTS,
    chosen_run,
    current_folder,
    current_options,
    current_sizes,
    export_facts,
    export_mark,
    find_notes,
    is_exporting,
    newest_commands,
    newest_disagrees,
    newest_folder,
    offered_folder,
    settled_folder,
    start,
    suggested_merge,
    written_names,
)
from qlora_studio.ui.server.messages import notify
from qlora_studio.ui.server.sync import Page, Scene, Slot, Updates, slot
from qlora_studio.ui.server.view import View
from qlora_studio.ui.server.workspace import Workspace
from qlora_studio.ui.tabs import deletion as deletions
from qlora_studio.ui.tabs import push as push_fold
from qlora_studio.ui.tabs.deletion import Deletable, Deletion
from qlora_studio.ui.tabs.export_form import (
    Elsewhere,
    ExportChoice,
    ExportTarget,
    Several,
    build_choice,
    build_elsewhere,
    build_several,
    build_target,
)
from qlora_studio.ui.tabs.push import PushFold
from qlora_studio.ui.views import export as view
from qlora_studio.ui.views.html import Html, page_head


@dataclass(frozen=True, slots=True)
class ExportTab:
    """The controls that others wire."""

    choice: ExportChoice
    target: ExportTarget
    elsewhere: Elsewhere
    several: Several
    onward: PushFold
    written: gr.Accordion
    deletion: Deletion
    start: gr.Button
    stop: gr.Button
    again: gr.Button
    open: gr.Button
    notes: gr.HTML
    readiness: gr.HTML
    state: gr.HTML


def build() -> ExportTab:
    gr.HTML(page_head("Export", "Written to your disk; nothing is uploaded unless you hand it on to the hub."))
    with gr.Row():
        with gr.Column(scale=6, min_width=330), gr.Group():
            choice, target = build_choice(), build_target()
            elsewhere, several = build_elsewhere(), build_several()
        with gr.Column(scale=6, min_width=330):
            notes = gr.HTML(elem_id="export-checks")
            state = gr.HTML(elem_id="export-state")
            show = gr.Button("Open the folder", size="sm", visible=False, elem_id="export-open-btn")
            again = gr.Button("Export again as chatted", size="sm", visible=False, elem_id="export-again-btn")
            onward = push_fold.build()
            with gr.Accordion("Exports of this run", open=False, visible=False, elem_id="export-written") as written:
                deletion = deletions.build(EXPORTS, "export")
    with gr.Row(elem_id="export-bar", elem_classes="qs-action-bar"):
        readiness = gr.HTML(elem_id="export-readiness", min_width=200)
        stop = gr.Button("Stop the export", variant="stop", visible=False, elem_id="export-stop-btn", min_width=120)
        start = gr.Button("Export", variant="primary", interactive=False, elem_id="export-btn", min_width=160)
    return ExportTab(
        choice, target, elsewhere, several, onward, written, deletion, start, stop, again, show, notes, readiness, state
    )


def slots(tab: ExportTab) -> list[Slot]:
    return [
        slot(
            tab.choice.run,
            lambda scene: gr.update(choices=scene.world.with_adapter, value=chosen_run(scene)),
            lambda scene: (scene.world.with_adapter, chosen_run(scene)),
        ),
        Slot(
            (tab.several.runs,),
            lambda scene: {tab.several.runs: gr.update(choices=scene.world.with_adapter)},
            lambda scene: scene.world.with_adapter,
            confirmed=False,
        ),
        slot(
            tab.choice.weights,
            lambda scene: gr.update(choices=scene.world.weights(chosen_run(scene)), value=scene.view.export_weights),
            lambda scene: (scene.world.weights(chosen_run(scene)), scene.view.export_weights),
        ),
        slot(
            tab.choice.what,
            lambda scene: gr.update(
                choices=view.cards(current_options(scene), current_sizes(scene)), value=scene.view.export_what
            ),
            lambda scene: (chosen_run(scene), scene.view.export_what, scene.view.export_gguf, scene.view.export_parts),
        ),
        slot(tab.choice.merge, _merge, export_mark),
        slot(
            tab.choice.gguf,
            _gguf,
            lambda scene: (scene.view.export_what, scene.view.export_gguf, scene.view.export_parts),
        ),
        slot(
            tab.choice.importance,
            lambda scene: _importance(current_options(scene)),
            lambda scene: (current_options(scene).searches_blocks, current_options(scene).importance),
        ),
        slot(
            tab.choice.parts,
            lambda scene: gr.update(visible=scene.view.export_what == "pack", value=list(scene.view.export_parts)),
            lambda scene: (scene.view.export_what, scene.view.export_parts),
        ),
        slot(tab.target.folder, current_folder, export_mark),
        slot(tab.notes, _notes, lambda scene: (export_mark(scene), scene.view.export_folder)),
        slot(tab.readiness, _readiness, lambda scene: (export_mark(scene), scene.view.export_folder)),
        Slot((tab.start, tab.stop), lambda scene: _buttons(scene, tab)),
        slot(tab.state, _state),
        slot(tab.open, lambda scene: gr.update(visible=newest_folder(scene) is not None)),
        slot(tab.again, lambda scene: gr.update(visible=newest_disagrees(scene))),
        *push_fold.slots(tab.onward),
        slot(tab.written, lambda scene: gr.update(visible=bool(written_names(scene)))),
        *deletions.slots(tab.deletion),
    ]


def wire(page: Page, tab: ExportTab) -> None:
    actions, choice = ExportActions(page.workspace), tab.choice
    push_fold.wire(page, tab.onward)
    deletions.wire(page, tab.deletion)
    page.on(tab.several.combine.click, actions.combine, [tab.several.runs, tab.several.weights, tab.several.how])
    page.on(tab.elsewhere.adopt.click, actions.adopt, [tab.elsewhere.folder, tab.elsewhere.base])
    for event in (choice.run.input, choice.what.input, choice.gguf.input, choice.parts.input):
        page.on(event, _choose, [choice.run, choice.what, choice.gguf, choice.parts])
    page.on(choice.merge.input, _choose_merge, [choice.merge])
    page.on(choice.importance.input, _choose_importance, [choice.importance])
    page.on(choice.weights.input, _choose_weights, [choice.weights])
    page.on(tab.target.folder.input, _choose_folder, [tab.target.folder], trigger_mode="always_last")
    page.on(tab.start.click, actions.start, [choice.run, tab.target.folder, tab.target.check])
    page.on(tab.again.click, actions.start_as_chatted)
    page.on(tab.open.click, actions.open)
    page.on(tab.stop.click, actions.stop)


def _choose(view_: View, run: str | None, what: str, gguf: str, parts: list[str]) -> None:
    if run != view_.export_run:
        view_.export_merge, view_.export_weights = None, ""  # another run, another measurement
        view_.export_importance = None
    view_.export_run, view_.export_what, view_.export_gguf = run, what, gguf
    view_.export_parts = tuple(parts)
    view_.export_folder = None


def _choose_merge(view_: View, merge: str) -> None:
    view_.export_merge = merge
    view_.export_folder = None


def _choose_importance(view_: View, importance: bool) -> None:
    view_.export_importance = importance


def _choose_weights(view_: View, weights: str | None) -> None:
    view_.export_weights = weights or ""


def _choose_folder(view_: View, folder: str) -> None:
    view_.export_folder = folder


@dataclass(frozen=True, slots=True)
class ExportActions:
    """What each button does for the tab whose view it is given."""

    workspace: Workspace

    def start(self, view_: View, run: str | None, folder: str, check: bool) -> None:
        view_.export_run = run
        scene = self._scene(view_)
        start(self.workspace, run, current_options(scene), settled_folder(scene, folder), check=check)
        view_.export_folder = None

    def start_as_chatted(self, view_: View) -> None:
        view_.export_merge, view_.export_folder = "as-chatted", None
        scene = self._scene(view_)
        start(self.workspace, chosen_run(scene), current_options(scene), str(offered_folder(scene) or ""), check=True)

    def open(self, view_: View) -> None:
        if (folder := newest_folder(self._scene(view_))) is not None:
            self.workspace.studio.exports.open_folder(folder)

    def stop(self, view_: View) -> None:
        scene = self._scene(view_)
        if (job := scene.world.newest_ref(chosen_run(scene), "exports")) is not None:
            self.workspace.studio.jobs.stop(job)

    def adopt(self, view_: View, folder: str, base: str) -> None:
        if not without_quotes(folder):
            raise StudioError("The folder is empty.", "Name the folder of an adapter.")
        job = self.workspace.studio.runs.adopt(folder, without_quotes(base))
        self.workspace.forget_world()
        notify(f"The adapter becomes the run '{job.name}'; a moment, and it can be chosen.")

    def combine(self, view_: View, runs: list[str], weights: str, how: CombineHow) -> None:
        pairs = list(zip(runs, parse_weights(weights, len(runs)), strict=True))
        job = self.workspace.studio.combinations.start(pairs, how)
        self.workspace.forget_world()
        notify(f"They become the run '{job.name}'; a moment, and it can be chosen.")

    def _scene(self, view_: View) -> Scene:
        return Scene(self.workspace, self.workspace.world(), view_)


def _delete_export(scene: Scene, folder: str) -> None:
    scene.workspace.studio.exports.delete(folder)


EXPORTS = Deletable("export", written_names, export_facts, _delete_export)


def _merge(scene: Scene) -> dict[str, Any]:
    chosen = scene.view.export_merge or suggested_merge(scene) or MERGE_CHOICES[0].name
    return gr.update(visible=find_export_kind(scene.view.export_what).merges, value=chosen)


def _importance(options: ExportOptions) -> dict[str, Any]:
    return gr.update(visible=options.searches_blocks, value=options.importance)


def _gguf(scene: Scene) -> dict[str, Any]:
    packed = scene.view.export_what == "pack" and "gguf" in scene.view.export_parts
    return gr.update(visible=scene.view.export_what == "gguf" or packed, value=scene.view.export_gguf)


def _notes(scene: Scene) -> Html:
    run = chosen_run(scene)
    if run is None:
        return view.nothing_to_export()
    return view.checklist(find_notes(scene.workspace, run, current_options(scene), current_folder(scene)))


def _readiness(scene: Scene) -> Html:
    """What the export becomes and takes, in one sentence."""
    run = chosen_run(scene)
    if run is None:
        return Html("")
    options = current_options(scene)
    checks = CHECK_PROMPTS if options.kind.compares_with_chat else 0
    return view.readiness_line(
        scene.workspace.studio.exports.readiness(run, options, current_folder(scene), checks).sentence
    )


def _buttons(scene: Scene, tab: ExportTab) -> Updates:
    exporting, run = is_exporting(scene), chosen_run(scene)
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
    return view.export_card(job, newest_commands(scene, run)) if job and run else Html("")
