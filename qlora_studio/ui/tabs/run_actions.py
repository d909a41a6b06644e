"""What the buttons of a run do: pause, save, queue, train more, pin, label, copy its settings, delete."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qlora_studio.core.errors import StudioError
from qlora_studio.ui import fields
from qlora_studio.ui.server.messages import notify
from qlora_studio.ui.server.view import View
from qlora_studio.ui.server.workspace import Workspace
from qlora_studio.ui.server.world import World

Shown = Callable[[World, View], str | None]
"""The name of the run that is shown whole."""


@dataclass(frozen=True, slots=True)
class RunActions:
    """What each button does with the run that a tab shows. All raise a StudioError where there is none."""

    workspace: Workspace
    shown: Shown

    def name(self, view_: View) -> str:
        found = self.shown(self.workspace.world(), view_)
        if found is None:
            raise StudioError("There is no run to do this with.", "Train one first.")
        return found

    def pause(self, view_: View) -> None:
        self.workspace.studio.runs.pause(self.name(view_))
        notify("It leaves the card after this step, with a checkpoint to go on from.")

    def save(self, view_: View) -> None:
        self.workspace.studio.runs.save_now(self.name(view_))
        notify("A checkpoint is written after this step.")

    def wait(self, view_: View) -> None:
        self.workspace.studio.queue.add_again(self.name(view_))
        self.workspace.studio.queue.start_next()

    def more(self, view_: View, epochs: str, schedule: str) -> None:
        notify(train_more(self.workspace, self.name(view_), epochs, fresh=schedule == "fresh"))

    def clone(self, view_: View) -> None:
        use_settings(self.workspace, self.name(view_))

    def pin(self, view_: View, checkpoint: str | None, *, pinned: bool) -> None:
        if checkpoint:
            step = int(checkpoint.removeprefix("step-"))
            self.workspace.studio.runs.pin_checkpoint(self.name(view_), step, pinned=pinned)

    def label(self, view_: View, title: str, tags: str, pinned: bool, note: str) -> None:
        words = tuple(dict.fromkeys(word.strip().lstrip("#") for word in tags.split(",") if word.strip().lstrip("#")))
        self.workspace.studio.runs.label(
            self.name(view_), title=title.strip(), tags=words, pinned=pinned, note=note.strip()
        )
        notify("Kept.")

    def ask(self, view_: View) -> None:
        view_.deleting = self.name(view_)

    def cancel(self, view_: View) -> None:
        view_.deleting = None

    def delete(self, view_: View) -> None:
        going, view_.deleting = view_.deleting, None
        if going is not None and going == self.name(view_):
            _delete(self.workspace, going)
            view_.run = None


def use_settings(workspace: Workspace, name: str) -> None:
    """Makes the draft of the next run a copy of this one's settings, for changing one of them."""
    config = workspace.studio.runs.open(name).config.replace({"saving.name": "", "optim.ended_at": ()})
    workspace.draft.change(fields.flatten(config))
    notify(f"The Train page has the settings of '{name}'.")


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


def _delete(workspace: Workspace, name: str) -> None:
    if workspace.chat.run == name:
        workspace.chat.close()
        workspace.chat.choose(None)
    workspace.studio.runs.delete(name)
    notify(f"The run '{name}' is deleted.")
