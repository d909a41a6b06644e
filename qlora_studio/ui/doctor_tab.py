"""The Doctor page: what this machine offers a run, and what stands in the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from qlora_studio.ui.desk import Desk
from qlora_studio.ui.live import Now
from qlora_studio.ui.speaking import speaking
from qlora_studio.ui.views import doctor as view
from qlora_studio.ui.views.html import page_head

QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


@dataclass(slots=True)
class DoctorTab:
    """The controls that others wire."""

    facts: gr.HTML
    look: gr.Button


def build() -> DoctorTab:
    gr.HTML(page_head("Doctor", "What this machine offers a run, and who else uses it."))
    facts = gr.HTML(elem_id="doctor-facts")
    look = gr.Button("Look again", size="sm", elem_id="doctor-look")
    return DoctorTab(facts, look)


def render(desk: Desk) -> str:
    now = Now.look(desk)
    return view.machine_cards(now.cards, now.machine, str(desk.studio.home.root))


def wire(desk: Desk, tab: DoctorTab) -> None:
    @speaking
    def look() -> str:
        return render(desk)

    tab.look.click(look, None, tab.facts, **QUIET)
