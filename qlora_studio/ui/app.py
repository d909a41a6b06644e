"""The page: sidebar, six tabs, one clock. Puts the tabs together; what they do stands in their own files."""

from __future__ import annotations

from typing import Any

import gradio as gr

from qlora_studio.ui.server.export import chosen_run
from qlora_studio.ui.server.sync import Page, Scene, Slot, Updates, slot
from qlora_studio.ui.server.view import View
from qlora_studio.ui.server.workspace import Workspace
from qlora_studio.ui.tabs import chat as chat_tab
from qlora_studio.ui.tabs import data as data_tab
from qlora_studio.ui.tabs import doctor as doctor_tab
from qlora_studio.ui.tabs import export as export_tab
from qlora_studio.ui.tabs import push as push_tab
from qlora_studio.ui.tabs import runs as runs_tab
from qlora_studio.ui.tabs import train as train_tab
from qlora_studio.ui.tabs.chat import ChatTab
from qlora_studio.ui.tabs.runs import RunsTab
from qlora_studio.ui.views import side

TITLE = "QLoRA Studio"
SWEEP = (3600, 172_800)
"""Seconds: uploads older than two days are removed, looked at hourly."""
BUSY_SECONDS, IDLE_SECONDS, HIDDEN_SECONDS = 1.0, 3.0, 20.0
"""How often a tab asks what is new: while something is at work, while nothing is, and while nobody sees it."""


def build(workspace: Workspace) -> gr.Blocks:
    """The whole page over one workspace, ready to be served."""
    return assemble(workspace)[0]


def assemble(workspace: Workspace) -> tuple[gr.Blocks, Page]:
    """The whole page, and what keeps it in step with the workspace."""
    blocks: gr.Blocks
    with gr.Blocks(title=TITLE, fill_width=True, delete_cache=SWEEP, analytics_enabled=False) as blocks:
        view = gr.State(View())
        sidebar, stop = _sidebar()
        with gr.Tabs(elem_id="pages", selected="train" if workspace.draft["data.sources"] else "data") as pages:
            with gr.Tab("Data", id="data", elem_id="tab-data"):
                data = data_tab.build(workspace)
            with gr.Tab("Train", id="train", elem_id="tab-train"):
                mixture = data.mixture
                train = train_tab.build(
                    workspace, {"data.mix_by": mixture.mix_by, "data.eval_share": mixture.eval_share}
                )
            with gr.Tab("Runs", id="runs", elem_id="tab-runs"):
                runs = runs_tab.build(workspace)
            with gr.Tab("Chat", id="chat", elem_id="tab-chat"):
                chat = chat_tab.build()
            with gr.Tab("Export", id="export", elem_id="tab-export"):
                export = export_tab.build()
            with gr.Tab("Doctor", id="doctor", elem_id="tab-doctor") as doctor_page:
                doctor = doctor_tab.build()
        clock = gr.Timer(BUSY_SECONDS)
        live = [*sidebar, *train_tab.live_slots(train)]
        slots = [
            *data_tab.slots(data),
            *train_tab.slots(train),
            *runs_tab.slots(runs),
            *chat_tab.slots(chat),
            *export_tab.slots(export),
            *doctor_tab.slots(doctor),
            slot(clock, lambda scene: gr.update(value=_seconds(scene)), _seconds),
        ]
        page = Page(workspace, view, slots, live)
        page.on(stop.click, lambda view_: stop_run(workspace))
        data_tab.wire(page, data)
        train_tab.wire(page, train)
        runs_tab.wire(page, runs)
        chat_tab.wire(page, chat)
        export_tab.wire(page, export)
        doctor_tab.wire(page, doctor, doctor_page)
        _wire_links(page, pages, runs, chat)
        _wire_clock(page, clock)
        filled = page.on(blocks.load, lambda view_: view_.shown.clear())
        filled.then(None, None, None, js="() => window.studioFilled?.()", api_visibility="private")
    return blocks, page


def _sidebar() -> tuple[list[Slot], gr.Button]:
    """Brand, device, current run, stop and theme; the same in one line for phones."""
    with gr.Sidebar(width=296, elem_id="side"):
        gr.HTML(side.BRAND, elem_id="brand")
        device = gr.HTML(elem_id="device")
        run = gr.HTML(elem_id="current-run")
        stop = gr.Button("Stop the run", variant="stop", size="sm", interactive=False, elem_id="stop-btn")
        theme = gr.Button("Light / dark", size="sm", elem_id="theme-btn")
        gr.HTML(side.FOOT)
    mini = gr.HTML(elem_id="mini")
    theme.click(None, None, None, js="() => window.studioSwitchTheme()", api_visibility="private")

    return [
        slot(device, lambda scene: side.device_card(scene.world.cards, scene.world.memory)),
        slot(run, lambda scene: side.run_card(scene.world.run)),
        slot(mini, lambda scene: side.mini_line(scene.world.run, scene.world.cards, scene.world.memory)),
        slot(stop, _stop_button),
    ], stop


def _stop_button(scene: Scene) -> Any:
    training = scene.world.training
    stopping = training is not None and training.state == "stopping"
    waits = stopping and training is not None and scene.workspace.studio.runs.stop_waits(training.name)
    label = "End it now" if waits else "Stopping after this step …" if stopping else "Stop the run"
    return gr.update(interactive=training is not None and (waits or not stopping), value=label)


def stop_run(workspace: Workspace) -> None:
    """Stops the run at work after its step; one that has not answered for long is ended."""
    if (run := workspace.world().training) is not None:
        if run.state == "stopping" and workspace.studio.runs.stop_waits(run.name):
            workspace.studio.runs.end_now(run.name)
        else:
            workspace.studio.runs.stop(run.name)


def _seconds(scene: Scene) -> float:
    """How soon this tab asks again."""
    if scene.view.hidden:
        return HIDDEN_SECONDS
    workspace, view = scene.workspace, scene.view
    jobs = [
        scene.world.newest_job(chosen_run(scene), "exports"),
        scene.world.newest_job(runs_tab.shown_run(scene.world, view), "evaluations"),
    ]
    at_work = (
        push_tab.at_work(scene)
        or any(job is not None and job.at_work for job in jobs)
        or scene.world.training is not None
    )
    counting = workspace.tokens.progress is not None or workspace.examination.under_way
    return BUSY_SECONDS if at_work or counting or workspace.chat.busy else IDLE_SECONDS


def _wire_clock(page: Page, clock: gr.Timer) -> None:
    """The clock, and what `page.js` presses when the tab goes to the background and comes back."""
    with gr.Row(elem_classes="qs-signals"):
        hide = gr.Button("hidden", elem_id="signal-hidden")
        show = gr.Button("visible", elem_id="signal-visible")
        news = gr.Textbox(elem_id="signal-news", interactive=True)

    def seen(view: View, *, hidden: bool) -> None:
        view.hidden = hidden

    page.on_clock(clock.tick, news)
    page.on(hide.click, lambda view: seen(view, hidden=True), queue=False)
    page.on(show.click, lambda view: seen(view, hidden=False), queue=False)


def _wire_links(page: Page, pages: gr.Tabs, runs: RunsTab, chat: ChatTab) -> None:
    """From a run in the table to its chat and its export."""
    workspace = page.workspace

    def to_chat(view: View) -> Updates:
        workspace.chat.choose(runs_tab.shown_run(workspace.world(), view))
        return {pages: gr.update(selected="chat")}

    def to_export(view: View) -> Updates:
        view.export_run = runs_tab.shown_run(workspace.world(), view)
        view.export_folder = None
        return {pages: gr.update(selected="export")}

    page.on(runs.chat.click, to_chat, also=[pages])
    page.on(runs.export.click, to_export, also=[pages])
