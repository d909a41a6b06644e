"""The page: sidebar, six tabs, one clock. Puts the tabs together; what they do stands in their own files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from qlora_studio.ui.server.messages import speaking
from qlora_studio.ui.server.session import Desk
from qlora_studio.ui.server.tick import SECONDS, Seen, Slot, slot, tick
from qlora_studio.ui.tabs import chat as chat_tab
from qlora_studio.ui.tabs import data as data_tab
from qlora_studio.ui.tabs import doctor as doctor_tab
from qlora_studio.ui.tabs import export as export_tab
from qlora_studio.ui.tabs import runs as runs_tab
from qlora_studio.ui.tabs import train as train_tab
from qlora_studio.ui.tabs.chat import ChatTab
from qlora_studio.ui.tabs.data import DataTab
from qlora_studio.ui.tabs.export import ExportTab
from qlora_studio.ui.tabs.runs import RunsTab
from qlora_studio.ui.tabs.train import TrainTab
from qlora_studio.ui.views import side

TITLE = "QLoRA Studio"
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
SWEEP = (3600, 172_800)
"""Seconds: uploads older than two days are removed, looked at hourly."""


def build(desk: Desk) -> gr.Blocks:
    """The whole page over one desk."""
    with gr.Blocks(title=TITLE, fill_width=True, delete_cache=SWEEP, analytics_enabled=False) as page:
        sidebar = _sidebar(desk)
        with gr.Tabs(elem_id="pages", selected="train" if desk.draft["data.sources"] else "data") as pages:
            with gr.Tab("Data", id="data", elem_id="tab-data"):
                data = data_tab.build(desk)
            with gr.Tab("Train", id="train", elem_id="tab-train"):
                train = train_tab.build(
                    desk, {"data.mix_by": data.form.mix_by, "data.eval_share": data.form.eval_share}
                )
            with gr.Tab("Runs", id="runs", elem_id="tab-runs"):
                runs = runs_tab.build(desk)
            with gr.Tab("Chat", id="chat", elem_id="tab-chat"):
                chat = chat_tab.build(desk)
            with gr.Tab("Export", id="export", elem_id="tab-export"):
                export = export_tab.build(desk)
            with gr.Tab("Doctor", id="doctor", elem_id="tab-doctor") as doctor_page:
                doctor = doctor_tab.build()
        slots = [
            *sidebar,
            *data_tab.slots(data),
            *train_tab.slots(train),
            *runs_tab.slots(runs),
            *chat_tab.slots(chat),
            *export_tab.slots(export),
            *doctor_tab.slots(doctor),
        ]
        follow = _follow(desk, page, slots)
        _wire_draft(desk, page, data, train)
        train_tab.wire(desk, train, follow)
        runs_tab.wire(desk, runs)
        chat_tab.wire(desk, chat)
        export_tab.wire(desk, export)
        doctor_tab.wire(desk, doctor, doctor_page)
        _wire_doors(desk, pages, runs, chat, export)
    return page


def _sidebar(desk: Desk) -> list[Slot]:
    """Brand, device, current run, stop and theme; the same in one line for phones."""
    with gr.Sidebar(width=296, elem_id="side"):
        gr.HTML(side.BRAND, elem_id="brand")
        device = gr.HTML(elem_id="device")
        run = gr.HTML(elem_id="current-run")
        stop = gr.Button("Stop the run", variant="stop", size="sm", interactive=False, elem_id="stop-btn")
        theme = gr.Button("Light / dark", size="sm", elem_id="theme-btn")
        gr.HTML(side.FOOT)
    mini = gr.HTML(elem_id="mini")

    @speaking
    def stop_run() -> None:
        if (name := desk.running()) is not None:
            desk.studio.runs.stop(name)

    stop.click(stop_run, None, None, **QUIET)
    theme.click(None, None, None, js="() => window.studioSwitchTheme()", api_visibility="private")
    return [
        slot(device, lambda now: side.device_card(now.cards, now.machine.memory_used, now.machine.memory_total)),
        slot(run, lambda now: side.run_card(now.run)),
        slot(mini, lambda now: side.mini_line(now.run, now.cards, now.machine.memory_used, now.machine.memory_total)),
        slot(stop, lambda now: gr.update(interactive=now.training)),
    ]


def _follow(desk: Desk, page: gr.Blocks, slots: list[Slot]) -> Callable[[Any], None]:
    """Starts the clock. Returns what makes the slots follow at once after an event."""
    seen = gr.State({})
    shown = [*(component for one in slots for component in one.components), seen]

    @speaking
    def follow(before: Seen) -> list[Any]:
        return tick(desk, slots, before)

    @speaking
    def show() -> list[Any]:
        return tick(desk, slots, {})

    gr.Timer(SECONDS).tick(follow, seen, shown, **QUIET)
    page.load(show, None, shown, **QUIET)
    return lambda event: event.then(follow, seen, shown, **QUIET)


def _wire_draft(desk: Desk, page: gr.Blocks, data: DataTab, train: TrainTab) -> None:
    """The draft of the next run: a fresh page shows it, and each change of data makes its plan anew."""
    shown = [*train.controls, *train.shown]

    @speaking
    def show() -> list[Any]:
        desk.make_plan()
        return [*train_tab.show_settings(desk, train), *train_tab.render(desk)]

    page.load(show, None, shown, **QUIET)
    for event in data_tab.wire(desk, data):
        event.then(show, None, shown, **QUIET)


def _wire_doors(desk: Desk, pages: gr.Tabs, runs: RunsTab, chat: ChatTab, export: ExportTab) -> None:
    """From a run in the table to its chat and its export."""

    @speaking
    def to_chat() -> list[Any]:
        name = runs_tab.shown_run(desk)
        desk.talk.choose(name)
        return [gr.update(selected="chat"), gr.update(value=name)]

    @speaking
    def to_export() -> list[Any]:
        desk.export_run = runs_tab.shown_run(desk)
        return [gr.update(selected="export"), gr.update(value=desk.export_run)]

    runs.chat.click(to_chat, None, [pages, chat.run], **QUIET)
    runs.export.click(to_export, None, [pages, export.run], **QUIET)
