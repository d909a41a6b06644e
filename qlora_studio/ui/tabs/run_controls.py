"""What can be done with the run that is shown: pause, save, queue, name, note, tag, pin, record, delete."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from qlora_studio.core.errors import StudioError
from qlora_studio.core.progress import RESUMABLE
from qlora_studio.core.runs import RunView
from qlora_studio.ui import fields
from qlora_studio.ui.server.messages import notify
from qlora_studio.ui.server.sync import Page, Scene, Slot, Updates, slot
from qlora_studio.ui.server.view import View
from qlora_studio.ui.server.workspace import Workspace
from qlora_studio.ui.server.world import World
from qlora_studio.ui.views import runs as view
from qlora_studio.ui.views.html import Html
from qlora_studio.ui.views.run import run_mark

Doors = tuple[gr.Button, gr.Button, gr.Button, gr.Button]
Shown = Callable[[World, View], str | None]
"""The name of the run that is shown whole."""


@dataclass(slots=True)
class RunControls:
    """The controls that others wire."""

    pause: gr.Button
    save: gr.Button
    wait: gr.Button
    clone: gr.Button
    checkpoint: gr.Dropdown
    pin: gr.Button
    unpin: gr.Button
    epochs: gr.Textbox
    schedule: gr.Radio
    more: gr.Button
    title: gr.Textbox
    tags: gr.Textbox
    pinned: gr.Checkbox
    note: gr.Textbox
    label: gr.Button
    record: gr.HTML
    delete: gr.Button
    holds: gr.HTML
    delete_now: gr.Button
    keep: gr.Button


def build_doors() -> Doors:
    """The buttons that stand in the row of doors."""
    pause = gr.Button("Pause", size="sm", visible=False, elem_id="run-pause-btn")
    save = gr.Button("Save a checkpoint now", size="sm", visible=False, elem_id="run-save-btn")
    wait = gr.Button("Go on later: queue it", size="sm", visible=False, elem_id="run-queue-btn")
    clone = gr.Button("Use its settings", size="sm", interactive=False, elem_id="run-clone-btn")
    return pause, save, wait, clone


def build(doors: Doors) -> RunControls:
    with gr.Accordion("Checkpoints", open=False, elem_id="run-checkpoints"), gr.Row():
        checkpoint = gr.Dropdown(
            [], value=None, label="Checkpoint", info="A pinned one stays, however many newer ones there are.",
            elem_id="run-checkpoint", interactive=True, scale=3, min_width=200,
        )  # fmt: skip
        pin = gr.Button("Pin", size="sm", elem_id="run-pin-btn", min_width=90)
        unpin = gr.Button("Unpin", size="sm", elem_id="run-unpin-btn", min_width=90)
    with gr.Accordion("Train more", open=False, elem_id="run-more"), gr.Row():
        epochs = gr.Textbox(
            "1", label="Epochs more", info="How often each row is seen again.", max_lines=1, elem_id="run-more-epochs",
            interactive=True, min_width=140,
        )  # fmt: skip
        schedule = gr.Radio(
            [("on the same curve", "longer"), ("as a new run", "fresh")], value="longer", label="Schedule",
            info="A longer schedule for this run, or a fresh one from its adapter.", elem_id="run-more-schedule",
            interactive=True, min_width=220,
        )  # fmt: skip
        more = gr.Button("Train more", size="sm", interactive=False, elem_id="run-more-btn", min_width=120)
    with gr.Accordion("Title, note, tags", open=False, elem_id="run-labels"):
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
        label = gr.Button("Keep this", size="sm", elem_id="run-label-btn")
    with gr.Accordion("Record and deletion", open=False, elem_id="run-keeping"):
        record = gr.HTML(elem_id="run-record")
        delete = gr.Button("Delete this run …", size="sm", variant="stop", elem_id="run-delete-btn")
        holds = gr.HTML(elem_id="run-holds")
        with gr.Row():
            delete_now = gr.Button(
                "Delete it for good", size="sm", variant="stop", visible=False, elem_id="run-delete-now-btn"
            )
            keep = gr.Button("Keep it", size="sm", visible=False, elem_id="run-keep-btn")
    return RunControls(
        *doors,
        checkpoint,
        pin,
        unpin,
        epochs,
        schedule,
        more,
        title,
        tags,
        pinned,
        note,
        label,
        record,
        delete,
        holds,
        delete_now,
        keep,
    )


def slots(tab: RunControls, shown: Shown) -> list[Slot]:
    def run(scene: Scene) -> RunView | None:
        return scene.world.view(shown(scene.world, scene.view))

    def mark(scene: Scene) -> object:
        return run_mark(scene.world.runs.get(shown(scene.world, scene.view) or ""))

    def labels_mark(scene: Scene) -> object:
        one = run(scene)
        return one and (one.name, one.labels)

    return [
        Slot((tab.pause, tab.save, tab.wait), lambda scene: _doors(tab, run(scene)), mark),
        Slot(
            (tab.title, tab.tags, tab.pinned, tab.note),
            lambda scene: _labels(tab, run(scene)),
            labels_mark,
            confirmed=False,
        ),
        slot(tab.clone, lambda scene: gr.update(interactive=run(scene) is not None), mark),
        slot(
            tab.checkpoint,
            lambda scene: gr.update(choices=_checkpoints(scene, shown)),
            lambda scene: _checkpoints(scene, shown),
        ),
        slot(tab.more, lambda scene: gr.update(interactive=_can_go_on(run(scene))), mark),
        slot(tab.record, lambda scene: _record(scene, run(scene)), mark),
        Slot((tab.delete, tab.holds, tab.delete_now, tab.keep), lambda scene: _deletion(scene, tab, run(scene))),
    ]


def wire(page: Page, tab: RunControls, shown: Shown) -> None:
    workspace = page.workspace
    runs = workspace.studio.runs

    def name(view_: View) -> str:
        found = shown(workspace.world(), view_)
        if found is None:
            raise StudioError("There is no run to do this with.", "Train one first.")
        return found

    def pause(view_: View) -> None:
        runs.pause(name(view_))
        notify("It leaves the card after this step, with a checkpoint to go on from.")

    def save(view_: View) -> None:
        runs.save_now(name(view_))
        notify("A checkpoint is written after this step.")

    def wait(view_: View) -> None:
        workspace.studio.queue.add_again(name(view_))
        workspace.studio.queue.start_next()

    def more(view_: View, epochs: str, schedule: str) -> None:
        notify(train_more(workspace, name(view_), epochs, fresh=schedule == "fresh"))

    def clone(view_: View) -> None:
        use_settings(workspace, name(view_))

    def pin(view_: View, checkpoint: str | None, *, pinned: bool) -> None:
        if checkpoint:
            runs.pin_checkpoint(name(view_), int(checkpoint.removeprefix("step-")), pinned=pinned)

    def label(view_: View, title: str, tags: str, pinned: bool, note: str) -> None:
        words = tuple(dict.fromkeys(word.strip().lstrip("#") for word in tags.split(",") if word.strip().lstrip("#")))
        runs.label(name(view_), title=title.strip(), tags=words, pinned=pinned, note=note.strip())
        notify("Kept.")

    def ask(view_: View) -> None:
        view_.deleting = name(view_)

    def keep(view_: View) -> None:
        view_.deleting = None

    def delete(view_: View) -> None:
        going, view_.deleting = view_.deleting, None
        if going is not None and going == name(view_):
            _delete(workspace, going)
            view_.run = None

    page.on(tab.pause.click, pause)
    page.on(tab.save.click, save)
    page.on(tab.wait.click, wait)
    page.on(tab.clone.click, clone)
    page.on(tab.pin.click, partial(pin, pinned=True), [tab.checkpoint])
    page.on(tab.unpin.click, partial(pin, pinned=False), [tab.checkpoint])
    page.on(tab.more.click, more, [tab.epochs, tab.schedule])
    page.on(tab.label.click, label, [tab.title, tab.tags, tab.pinned, tab.note])
    page.on(tab.delete.click, ask)
    page.on(tab.keep.click, keep)
    page.on(tab.delete_now.click, delete)


def use_settings(workspace: Workspace, name: str) -> None:
    """Makes the draft of the next run a copy of this one's settings, for changing one of them."""
    config = workspace.studio.runs.open(name).config.replace({"saving.name": "", "optim.ended_at": ()})
    workspace.draft.change(fields.flatten(config))
    notify(f"The Train page has the settings of '{name}'.")


def _checkpoints(scene: Scene, shown: Shown) -> list[tuple[str, str]]:
    """The checkpoints of the run that is shown, without its adapter."""
    return [one for one in scene.world.weights(shown(scene.world, scene.view)) if one[1]]


def train_more(workspace: Workspace, name: str, epochs: str, *, fresh: bool) -> str:
    """Puts a run, or a new one from its adapter, into the queue for so many more epochs; what came of it, in words."""
    number = fields.parse_number(epochs or "")
    if not isinstance(number, float) or number <= 0:
        raise StudioError(f"'{epochs}' is no number of epochs.", "Write one above 0, such as 1 or 0.5.")
    studio = workspace.studio
    workspace.chat.close()
    if fresh:
        changes: dict[str, Any] = {"optim.epochs": number, "optim.max_steps": None}
        name = studio.queue.add(studio.runs.anew(name, **changes))
    else:
        studio.runs.extend(name, number)
        studio.queue.add_again(name)
        studio.queue.start_next()
    return f"The run '{name}' waits in the queue." if name in studio.queue.names() else f"The run '{name}' has begun."


def _can_go_on(run: RunView | None) -> bool:
    return run is not None and run.has_adapter and not run.at_work and run.state != "queued"


def _delete(workspace: Workspace, name: str) -> None:
    if workspace.chat.run == name:
        workspace.chat.close()
        workspace.chat.choose(None)
    workspace.studio.runs.delete(name)
    notify(f"The run '{name}' is deleted.")


def _doors(tab: RunControls, run: RunView | None) -> Updates:
    at_work = run is not None and run.state == "running"
    return {
        tab.pause: gr.update(visible=at_work),
        tab.save: gr.update(visible=at_work),
        tab.wait: gr.update(visible=run is not None and run.state in RESUMABLE),
    }


def _labels(tab: RunControls, run: RunView | None) -> Updates:
    if run is None:
        return {control: gr.update() for control in (tab.title, tab.tags, tab.pinned, tab.note)}
    return {
        tab.title: gr.update(value=run.title),
        tab.tags: gr.update(value=", ".join(run.labels.tags)),
        tab.pinned: gr.update(value=run.labels.pinned),
        tab.note: gr.update(value=run.labels.note),
    }


def _record(scene: Scene, run: RunView | None) -> Html:
    """The record as a file to save; only of a run that is over, for it grows with each step."""
    if run is None or run.at_work:
        return Html("")
    return view.record_link(run.name, scene.workspace.studio.runs.record(run.name))


def _deletion(scene: Scene, tab: RunControls, run: RunView | None) -> Updates:
    asking = run is not None and scene.view.deleting == run.name
    size = scene.workspace.studio.runs.size_bytes(run.name) if asking and run else 0
    referring = scene.workspace.studio.references.to_run(run.name) if asking and run else []
    return {
        tab.delete: gr.update(interactive=run is not None and not run.at_work, visible=not asking),
        tab.holds: view.deletion_card(run, size, referring) if asking and run else Html(""),
        tab.delete_now: gr.update(visible=asking),
        tab.keep: gr.update(visible=asking),
    }
