"""The Doctor page: whether this machine can train, and the remedy where it cannot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from qlora_studio.core.doctor import Check, diagnostics
from qlora_studio.core.errors import StudioError
from qlora_studio.ui.server.messages import speaking
from qlora_studio.ui.server.session import Desk
from qlora_studio.ui.server.tick import Now, Slot, slot
from qlora_studio.ui.views import doctor as view
from qlora_studio.ui.views.html import page_head

QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


@dataclass(slots=True)
class DoctorTab:
    """The controls that others wire."""

    facts: gr.HTML
    checks: gr.HTML
    look: gr.Button
    text: gr.Textbox


def build() -> DoctorTab:
    gr.HTML(page_head("Doctor", "Whether this machine can train, who else uses it, and what to do where it cannot."))
    facts = gr.HTML(elem_id="doctor-facts")
    checks = gr.HTML(elem_id="doctor-checks")
    look = gr.Button("Test torch and its 4-bit kernels", variant="primary", elem_id="doctor-look")
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
    return DoctorTab(facts, checks, look, text)


def wire(desk: Desk, tab: DoctorTab, page: gr.Tab) -> None:
    @speaking
    def look() -> None:
        desk.examine()

    @speaking
    def enter() -> str:
        desk.machine_checks = tuple(desk.studio.machine.check(_config(desk)))
        desk.version += 1
        now = Now.look(desk)
        return view.machine_cards(now.cards, now.machine, str(desk.studio.home.root))

    tab.look.click(look, None, None, **QUIET)
    page.select(enter, None, tab.facts, **QUIET)


def slots(tab: DoctorTab) -> list[Slot]:
    return [
        slot(tab.checks, lambda now: view.checks_card(*_checks(now.desk))),
        slot(tab.text, lambda now: _text(now.desk)),
        slot(tab.look, lambda now: gr.update(interactive=now.desk.examining is None)),
    ]


def _checks(desk: Desk) -> tuple[tuple[Check, ...], tuple[Check, ...], str]:
    """Checks of the machine, checks of torch, and what the examination is doing; empty when none is under way."""
    phase = desk.studio.jobs.look(desk.examining).progress.phase or "starting" if desk.examining else ""
    return desk.machine_checks, desk.engine_checks, phase


def _text(desk: Desk) -> str:
    machine, engine, _ = _checks(desk)
    return diagnostics((*machine, *engine), str(desk.studio.home.root), str(Path.home()))


def _config(desk: Desk) -> Any:
    """The draft where it makes sense, so that the disk is compared with what its model needs."""
    try:
        return desk.config()
    except StudioError:
        return None
