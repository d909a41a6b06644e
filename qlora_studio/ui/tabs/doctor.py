"""The Doctor page: whether this machine can train, and the remedy where it cannot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.doctor import diagnostics
from qlora_studio.core.errors import StudioError
from qlora_studio.ui.server.sync import Page, Scene, Slot, Updates, slot
from qlora_studio.ui.server.view import View
from qlora_studio.ui.server.workspace import Workspace
from qlora_studio.ui.views import doctor as view
from qlora_studio.ui.views.html import Html, page_head


@dataclass(slots=True)
class DoctorTab:
    """The controls that others wire."""

    facts: gr.HTML
    checks: gr.HTML
    examine: gr.Button
    text: gr.Textbox


def build() -> DoctorTab:
    gr.HTML(page_head("Doctor", "Whether this machine can train, who else uses it, and what to do where it cannot."))
    facts = gr.HTML(elem_id="doctor-facts")
    checks = gr.HTML(elem_id="doctor-checks")
    examine = gr.Button("Test torch and its 4-bit kernels", variant="primary", elem_id="doctor-look")
    with gr.Accordion("Diagnostics to copy", open=False, elem_id="doctor-copy"):
        text = gr.Textbox(
            label="Diagnostics",
            info="Plain text for a bug report. It holds no names, no paths of yours and no secrets.",
            lines=8,
            max_lines=20,
            buttons=["copy"],
            interactive=False,
            elem_id="doctor-text",
        )
    return DoctorTab(facts, checks, examine, text)


def slots(tab: DoctorTab) -> list[Slot]:
    return [
        slot(tab.checks, _checks),
        slot(tab.text, _text),
        slot(tab.examine, lambda scene: gr.update(interactive=not scene.workspace.examination.under_way)),
    ]


def wire(page: Page, tab: DoctorTab, opened: gr.Tab) -> None:
    workspace = page.workspace

    def enter(view_: View) -> Updates:
        workspace.examination.check_machine(_config(workspace))
        machine = workspace.studio.machine.read()
        return {tab.facts: view.machine_cards(machine, str(workspace.studio.home.root))}

    page.on(tab.examine.click, lambda _: workspace.examination.check_engine())
    page.on(opened.select, enter, also=[tab.facts])


def _checks(scene: Scene) -> Html:
    found = scene.workspace.examination
    return view.checks_card(found.machine, found.engine, found.phase)


def _text(scene: Scene) -> str:
    found = scene.workspace.examination
    return diagnostics((*found.machine, *found.engine), str(scene.workspace.studio.home.root), str(Path.home()))


def _config(workspace: Workspace) -> TrainConfig | None:
    """The draft where it makes sense, so that the disk is compared with what its model needs."""
    try:
        return workspace.draft.config()
    except StudioError:
        return None
