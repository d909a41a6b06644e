"""The settings as controls: each follows the draft, but never against the person who is typing in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.ui import fields, form
from qlora_studio.ui.fields import Setting
from qlora_studio.ui.server.sync import Page, Scene, Slot, mark_of
from qlora_studio.ui.server.view import View
from qlora_studio.ui.server.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Control:
    """A setting and what it is typed into."""

    setting: Setting
    component: Any

    @property
    def value_slot(self) -> Slot:
        dotted = self.setting.dotted
        return Slot(
            (self.component,),
            lambda scene: {self.component: form.show(self.setting, scene.workspace.draft[dotted])},
            lambda scene: scene.workspace.draft[dotted],
            "value",
            confirmed=False,
        )

    @property
    def problem_slot(self) -> Slot:
        """What is wrong with the value, or what is taken for it, under the label."""
        dotted = self.setting.dotted
        return Slot(
            (self.component,),
            lambda scene: {self.component: form.show_below(self.setting, *_below(scene, dotted))},
            lambda scene: _below(scene, dotted),
            "problem",
        )


def slots(controls: Sequence[Control]) -> list[Slot]:
    return [slot for control in controls for slot in (control.value_slot, control.problem_slot)]


def wire(page: Page, controls: Sequence[Control]) -> None:
    """Only what a person typed reaches the draft, one field at a time: a page that still loads writes nothing back."""
    for control in controls:
        for event in _edits(control.component):
            # unchecked by Gradio, which would refuse a number that is half typed: TrainConfig says what is wrong
            page.on(
                event,
                lambda view, value, control=control: take(page.workspace, view, control, value),
                [control.component],
                trigger_mode="always_last",
                preprocess=False,
            )


def take(workspace: Workspace, view: View, control: Control, value: Any) -> None:
    """Takes what was typed into the draft. This tab shows it already, so it is not sent back into the field."""
    setting = control.setting
    if setting.slider and value in ("", None):
        return  # emptied to be typed anew
    value = _read(workspace, setting, value)
    with view.lock:  # a tick between the two would send the value into the field, over what is typed by then
        if mark_of(value) != mark_of(workspace.draft[setting.dotted]):
            workspace.draft.change({setting.dotted: value})
        view.shown[control.value_slot.name] = mark_of(workspace.draft[setting.dotted])


def agree(workspace: Workspace, view: View, controls: Sequence[Control], values: Sequence[Any]) -> None:
    """Makes sure that the draft is what this tab shows, taking what was typed a moment ago.

    Raises a StudioError that names the settings which were changed elsewhere and are not shown here yet.
    """
    elsewhere = []
    for control, sent in zip(controls, values, strict=True):
        setting, draft = control.setting, workspace.draft[control.setting.dotted]
        if mark_of(_read(workspace, setting, sent)) == mark_of(draft):
            continue
        if view.shown.get(control.value_slot.name) == mark_of(draft):
            take(workspace, view, control, sent)
        else:
            elsewhere.append(f"“{setting.label}” is {fields.as_text(draft) or 'empty'} now")
    if elsewhere:
        raise StudioError(
            f"The settings were changed in another tab: {', '.join(elsewhere)}.",
            "This page shows them in a moment. Look at them, then start again.",
        )


def _below(scene: Scene, dotted: str) -> tuple[Problem | None, Problem | None, str]:
    """What is wrong with a field, what is unusual about it, and what is taken where it was left open."""
    outlook = scene.workspace.outlook()
    return outlook.problem_of(dotted), outlook.unusual_of(dotted), outlook.chosen_for(dotted)


def _read(workspace: Workspace, setting: Setting, value: Any) -> Any:
    return fields.clamp(setting, fields.read(setting, value), workspace.draft[setting.dotted])


def _edits(component: Any) -> list[Any]:
    """The events of a control that a person causes. A text that is pasted with the mouse shows only on leaving."""
    return [component.input, component.blur] if isinstance(component, gr.Textbox) else [component.input]
