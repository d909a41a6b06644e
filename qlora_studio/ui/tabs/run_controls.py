"""What can be done with the run that is shown: pause, save, queue, name, note, tag, pin, record, delete."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import gradio as gr

from qlora_studio.core.progress import RESUMABLE
from qlora_studio.core.runs import RunView
from qlora_studio.ui.server.sync import Page, Scene, Slot, Updates, slot
from qlora_studio.ui.tabs.run_actions import RunActions, Shown
from qlora_studio.ui.views import runs as view
from qlora_studio.ui.views.html import Html
from qlora_studio.ui.views.run import run_mark

Buttons = tuple[gr.Button, gr.Button, gr.Button, gr.Button]


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Which checkpoints stay whatever comes."""

    choice: gr.Dropdown
    pin: gr.Button
    unpin: gr.Button


@dataclass(frozen=True, slots=True)
class MoreEpochs:
    """Training a run longer than it was planned."""

    epochs: gr.Textbox
    schedule: gr.Radio
    start: gr.Button


@dataclass(frozen=True, slots=True)
class Labels:
    """What a person says of a run."""

    title: gr.Textbox
    tags: gr.Textbox
    pinned: gr.Checkbox
    note: gr.Textbox
    keep: gr.Button


@dataclass(frozen=True, slots=True)
class Deletion:
    """The button, and the question that it asks first."""

    ask: gr.Button
    holds: gr.HTML
    confirm: gr.Button
    cancel: gr.Button


@dataclass(frozen=True, slots=True)
class RunControls:
    """The controls that others wire."""

    pause: gr.Button
    save: gr.Button
    wait: gr.Button
    clone: gr.Button
    checkpoints: Checkpoints
    more: MoreEpochs
    labels: Labels
    record: gr.HTML
    deletion: Deletion


def build_buttons() -> Buttons:
    """The buttons that stand in one row with the links to other pages."""
    pause = gr.Button("Pause", size="sm", visible=False, elem_id="run-pause-btn")
    save = gr.Button("Save a checkpoint now", size="sm", visible=False, elem_id="run-save-btn")
    wait = gr.Button("Go on later: queue it", size="sm", visible=False, elem_id="run-queue-btn")
    clone = gr.Button("Use its settings", size="sm", interactive=False, elem_id="run-clone-btn")
    return pause, save, wait, clone


def build(buttons: Buttons) -> RunControls:
    with gr.Accordion("Checkpoints", open=False, elem_id="run-checkpoints"), gr.Row():
        checkpoints = _build_checkpoints()
    with gr.Accordion("Train more", open=False, elem_id="run-more"), gr.Row():
        more = _build_more()
    with gr.Accordion("Title, note, tags", open=False, elem_id="run-labels"):
        labels = _build_labels()
    with gr.Accordion("Record and deletion", open=False, elem_id="run-keeping"):
        record = gr.HTML(elem_id="run-record")
        deletion = _build_deletion()
    return RunControls(*buttons, checkpoints, more, labels, record, deletion)


def _build_checkpoints() -> Checkpoints:
    return Checkpoints(
        choice=gr.Dropdown(
            [], value=None, label="Checkpoint", info="A pinned one stays, however many newer ones there are.",
            elem_id="run-checkpoint", interactive=True, scale=3, min_width=200,
        ),
        pin=gr.Button("Pin", size="sm", elem_id="run-pin-btn", min_width=90),
        unpin=gr.Button("Unpin", size="sm", elem_id="run-unpin-btn", min_width=90),
    )  # fmt: skip


def _build_more() -> MoreEpochs:
    return MoreEpochs(
        epochs=gr.Textbox(
            "1", label="Epochs more", info="How often each row is seen again.", max_lines=1, elem_id="run-more-epochs",
            interactive=True, min_width=140,
        ),
        schedule=gr.Radio(
            [("on the same curve", "longer"), ("as a new run", "fresh")], value="longer", label="Schedule",
            info="A longer schedule for this run, or a fresh one from its adapter.", elem_id="run-more-schedule",
            interactive=True, min_width=220,
        ),
        start=gr.Button("Train more", size="sm", interactive=False, elem_id="run-more-btn", min_width=120),
    )  # fmt: skip


def _build_labels() -> Labels:
    with gr.Row():
        title = gr.Textbox(
            label="Title", info="Shown instead of its first one; commands use the name, which stays.", max_lines=1,
            elem_id="run-title", interactive=True, min_width=180,
        )  # fmt: skip
        tags = gr.Textbox(
            label="Tags", info="Words to find it by, with commas between.", max_lines=1, elem_id="run-tags",
            interactive=True, min_width=180,
        )  # fmt: skip
        pinned = gr.Checkbox(
            False, label="Pinned", info="Stands first, and cannot be deleted.", elem_id="run-pinned",
            interactive=True, min_width=120,
        )  # fmt: skip
    note = gr.Textbox(
        label="Note", info="What to remember of this run.", lines=2, max_lines=8, elem_id="run-note",
        interactive=True,
    )  # fmt: skip
    return Labels(title, tags, pinned, note, gr.Button("Keep this", size="sm", elem_id="run-label-btn"))


def _build_deletion() -> Deletion:
    ask = gr.Button("Delete this run …", size="sm", variant="stop", elem_id="run-delete-btn")
    holds = gr.HTML(elem_id="run-holds")
    with gr.Row():
        confirm = gr.Button(
            "Delete it for good", size="sm", variant="stop", visible=False, elem_id="run-delete-now-btn"
        )
        cancel = gr.Button("Keep it", size="sm", visible=False, elem_id="run-keep-btn")
    return Deletion(ask, holds, confirm, cancel)


def slots(tab: RunControls, shown: Shown) -> list[Slot]:
    def run(scene: Scene) -> RunView | None:
        return scene.world.view(shown(scene.world, scene.view))

    def mark(scene: Scene) -> object:
        return run_mark(scene.world.runs.get(shown(scene.world, scene.view) or ""))

    def labels_mark(scene: Scene) -> object:
        one = run(scene)
        return one and (one.name, one.labels)

    labels, deletion = tab.labels, tab.deletion
    return [
        Slot((tab.pause, tab.save, tab.wait), lambda scene: _button_states(tab, run(scene)), mark),
        Slot(
            (labels.title, labels.tags, labels.pinned, labels.note),
            lambda scene: _labels(labels, run(scene)),
            labels_mark,
            confirmed=False,
        ),
        slot(tab.clone, lambda scene: gr.update(interactive=run(scene) is not None), mark),
        slot(
            tab.checkpoints.choice,
            lambda scene: gr.update(choices=_checkpoints(scene, shown)),
            lambda scene: _checkpoints(scene, shown),
        ),
        slot(tab.more.start, lambda scene: gr.update(interactive=_can_go_on(run(scene))), mark),
        slot(tab.record, lambda scene: _record(scene, run(scene)), mark),
        Slot(
            (deletion.ask, deletion.holds, deletion.confirm, deletion.cancel),
            lambda scene: _deletion(scene, deletion, run(scene)),
        ),
    ]


def wire(page: Page, tab: RunControls, shown: Shown) -> None:
    actions = RunActions(page.workspace, shown)
    page.on(tab.pause.click, actions.pause)
    page.on(tab.save.click, actions.save)
    page.on(tab.wait.click, actions.wait)
    page.on(tab.clone.click, actions.clone)
    page.on(tab.checkpoints.pin.click, partial(actions.pin, pinned=True), [tab.checkpoints.choice])
    page.on(tab.checkpoints.unpin.click, partial(actions.pin, pinned=False), [tab.checkpoints.choice])
    page.on(tab.more.start.click, actions.more, [tab.more.epochs, tab.more.schedule])
    labels, deletion = tab.labels, tab.deletion
    page.on(labels.keep.click, actions.label, [labels.title, labels.tags, labels.pinned, labels.note])
    page.on(deletion.ask.click, actions.ask)
    page.on(deletion.cancel.click, actions.cancel)
    page.on(deletion.confirm.click, actions.delete)


def _checkpoints(scene: Scene, shown: Shown) -> list[tuple[str, str]]:
    """The checkpoints of the run that is shown, without its adapter."""
    return [one for one in scene.world.weights(shown(scene.world, scene.view)) if one[1]]


def _can_go_on(run: RunView | None) -> bool:
    return run is not None and run.has_adapter and not run.at_work and run.state != "queued"


def _button_states(tab: RunControls, run: RunView | None) -> Updates:
    at_work = run is not None and run.state == "running"
    return {
        tab.pause: gr.update(visible=at_work),
        tab.save: gr.update(visible=at_work),
        tab.wait: gr.update(visible=run is not None and run.state in RESUMABLE),
    }


def _labels(controls: Labels, run: RunView | None) -> Updates:
    if run is None:
        return {control: gr.update() for control in (controls.title, controls.tags, controls.pinned, controls.note)}
    return {
        controls.title: gr.update(value=run.title),
        controls.tags: gr.update(value=", ".join(run.labels.tags)),
        controls.pinned: gr.update(value=run.labels.pinned),
        controls.note: gr.update(value=run.labels.note),
    }


def _record(scene: Scene, run: RunView | None) -> Html:
    """The record as a file to save; only of a run that is over, for it grows with each step."""
    if run is None or run.at_work:
        return Html("")
    return view.record_link(run.name, scene.workspace.studio.runs.record(run.name))


def _deletion(scene: Scene, controls: Deletion, run: RunView | None) -> Updates:
    asking = run is not None and scene.view.deleting == run.name
    size = scene.workspace.studio.runs.size_bytes(run.name) if asking and run else 0
    referring = scene.workspace.studio.references.to_run(run.name) if asking and run else []
    return {
        controls.ask: gr.update(interactive=run is not None and not run.at_work, visible=not asking),
        controls.holds: view.deletion_card(run, size, referring) if asking and run else Html(""),
        controls.confirm: gr.update(visible=asking),
        controls.cancel: gr.update(visible=asking),
    }
