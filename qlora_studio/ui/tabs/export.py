"""The Export page: the adapter or a merged model, into a folder of the person's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import JobRef, MergeInto
from qlora_studio.ui.server.machine import disk_free
from qlora_studio.ui.server.messages import speaking, tell
from qlora_studio.ui.server.session import Desk
from qlora_studio.ui.server.tick import Now, Slot, slot
from qlora_studio.ui.views import export as view
from qlora_studio.ui.views.export import Check
from qlora_studio.ui.views.html import Html, gib, page_head

QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
WHATS: dict[str, tuple[str, MergeInto]] = {
    "adapter": ("adapter", "original"),
    "merged-original": ("merged", "original"),
    "merged-as-chatted": ("merged", "as_chatted"),
}


@dataclass(slots=True)
class ExportTab:
    """The controls that others wire."""

    run: gr.Dropdown
    what: gr.Radio
    folder: gr.Textbox
    check: gr.Checkbox
    go: gr.Button
    stop: gr.Button
    checks: gr.HTML
    state: gr.HTML

    @property
    def shown(self) -> list[gr.blocks.Block]:
        """What `render` answers for, in its order."""
        return [self.what, self.folder, self.checks, self.go]


def build(desk: Desk) -> ExportTab:
    gr.HTML(page_head("Export", "Written to your disk only; nothing is uploaded."))
    with gr.Row():
        with gr.Column(scale=6, min_width=330):
            with gr.Group():
                run = gr.Dropdown(
                    [],
                    value=None,
                    label="Run",
                    info="Whose adapter is exported.",
                    elem_id="export-run",
                    interactive=True,
                )
                what = gr.Radio(
                    _cards(None, None),
                    value=desk.export_what,
                    label="What",
                    info="A merged model runs alone; an adapter stays small and needs its base.",
                    elem_id="export-what",
                    elem_classes="qs-choice",
                    interactive=True,
                )
                folder = gr.Textbox(
                    label="Folder",
                    info="New or empty; an export never mixes with what is there.",
                    max_lines=1,
                    elem_id="export-folder",
                    interactive=True,
                )
                check = gr.Checkbox(
                    True,
                    label="Compare the merged model with the chat",
                    info="Loads both and asks them the same; takes a little longer.",
                    elem_id="export-check",
                    interactive=True,
                )
            with gr.Row():
                go = gr.Button("Export", variant="primary", interactive=False, elem_id="export-btn", scale=3)
                stop = gr.Button("Stop the export", variant="stop", visible=False, elem_id="export-stop-btn", scale=1)
        with gr.Column(scale=6, min_width=330):
            checks = gr.HTML(elem_id="export-checks")
            state = gr.HTML(elem_id="export-state")
    return ExportTab(run, what, folder, check, go, stop, checks, state)


def wire(desk: Desk, tab: ExportTab) -> None:
    @speaking
    def choose(run: str | None, what: str) -> list[Any]:
        desk.export_run, desk.export_what = run, what
        return render(desk, what)

    @speaking
    def retarget(folder: str, what: str) -> Any:
        return view.checklist(find_checks(desk, what, folder))

    @speaking
    def go(run: str | None, what: str, folder: str, check: bool) -> None:
        desk.export_run = run
        start(desk, what, folder, check)

    @speaking
    def stop() -> None:
        if (job := newest(desk)) is not None:
            desk.studio.jobs.stop(job)

    for event in (tab.run.change, tab.what.input):
        event(choose, [tab.run, tab.what], tab.shown, **QUIET)
    tab.folder.change(retarget, [tab.folder, tab.what], tab.checks, trigger_mode="always_last", **QUIET)
    tab.go.click(go, [tab.run, tab.what, tab.folder, tab.check], None, **QUIET)
    tab.stop.click(stop, None, None, **QUIET)


def slots(tab: ExportTab) -> list[Slot]:
    return [
        Slot(tab.shown, lambda now: render(now.desk, now.desk.export_what), _shown_mark),
        slot(tab.run, _choices, lambda now: (now.runs_mark, now.desk.export_run)),
        slot(tab.state, _state),
        slot(tab.stop, lambda now: gr.update(visible=_exporting(now.desk))),
    ]


def start(desk: Desk, what: str, folder: str, check: bool) -> JobRef:
    """Starts the export. Raises a StudioError where something stands against it."""
    if not desk.export_run:
        raise StudioError("There is no run to export.", "Train one first, or choose one above.")
    if what not in WHATS:
        raise StudioError("Choose what to export.", "Adapter, or one of the merged models.")
    if not folder.strip():
        raise StudioError("The folder is empty.", "Name a new folder.", field="folder")
    if _exporting(desk):
        raise StudioError("An export is under way.", "Wait for it, or stop it.")
    kind, merge = WHATS[what]
    if kind == "merged":
        desk.refuse_while_training("Export")
        desk.talk.close()
    job = desk.studio.exports.start(
        desk.export_run,
        kind,
        folder.strip(),
        merge,
        desk.studio.data.demo().prompts[:3] if check and kind == "merged" else (),
    )
    tell("The export has begun.")
    return job


def render(desk: Desk, what: str) -> list[Any]:
    """Cards with sizes, a folder and the checklist, in the order of `ExportTab.shown`."""
    sizes = desk.studio.exports.sizes(desk.export_run) if desk.export_run else (None, None)
    folder = default_folder(desk, what)
    return [
        gr.update(choices=_cards(*sizes)),
        str(folder) if folder else "",
        view.checklist(find_checks(desk, what, str(folder or ""))) if desk.export_run else view.nothing_to_export(),
        gr.update(interactive=desk.export_run is not None and not _exporting(desk) and desk.running() is None),
    ]


def default_folder(desk: Desk, what: str) -> Path | None:
    """`<home>/exports/<run>-<what>`, numbered where that is taken."""
    if not desk.export_run:
        return None
    stem, number = desk.studio.home.exports / f"{desk.export_run}-{what.removesuffix('-original')}", 1
    while (place := stem if number == 1 else stem.with_name(f"{stem.name}-{number}")).exists():
        number += 1
    return place


def find_checks(desk: Desk, what: str, folder: str) -> list[Check]:
    """What to know before this export."""
    if not desk.export_run:
        return []
    run = desk.studio.runs.open(desk.export_run)
    adapter, merged = desk.studio.exports.sizes(run.name)
    need = adapter if what == "adapter" else merged
    place = Path(folder).expanduser()
    checks = [
        Check("good", f"The adapter is saved: {gib(adapter)}, rank {run.config.lora.rank}, {run.progress.step} steps.")
    ]
    if merged is None:
        checks.append(
            Check("warn", f"The base {run.config.model.base} is not on this machine; a merge fetches it first.")
        )
    else:
        checks.append(Check("good", f"The base {run.config.model.base} is here: {gib(merged)}."))
    if run.state not in ("finished", "stopped"):
        checks.append(Check("warn", f"The run is {run.state}; what it saved last is exported."))
    if not folder.strip() or not place.is_absolute():
        checks.append(Check("bad", "Give the folder with its whole path."))
    else:
        free = disk_free(place)
        if need is not None:
            checks.append(
                Check("good" if free > need * 1.05 else "bad", f"{gib(free)} free there, {gib(need)} needed.")
            )
        taken = place.exists() and (place.is_file() or any(place.iterdir()))
        checks.append(
            Check("bad", "The folder is not empty; name a new one.")
            if taken
            else Check("good", "The folder is new or empty.")
        )
    if what == "merged-as-chatted":
        checks.append(
            Check("good", "Merged into the 4-bit rounded weights: it answers as the chat did, but is not smaller.")
        )
    elif what != "adapter":
        checks.append(
            Check(
                "warn",
                "Merged into the base's own weights: answers can differ a little from the chat's; the check says how.",
            )
        )
    checks.append(Check("warn", "The base's licence stays in force for what you make of it."))
    return checks


def newest(desk: Desk) -> JobRef | None:
    """The newest export of the run the page is turned to."""
    jobs = desk.studio.runs.jobs_of(desk.export_run, "exports") if desk.export_run else []
    return jobs[0] if jobs else None


def _exporting(desk: Desk) -> bool:
    job = newest(desk)
    return job is not None and desk.studio.jobs.look(job).at_work


def _shown_mark(now: Now) -> object:
    """An export that has ended leaves a folder behind, so another one is offered."""
    return now.desk.export_run, _exporting(now.desk), now.training


def _state(now: Now) -> Html:
    job = newest(now.desk)
    return view.export_card(now.desk.studio.jobs.look(job)) if job else Html("")


def _choices(now: Now) -> Any:
    names = [run.name for run in now.desk.studio.runs.all() if run.has_adapter]
    if now.desk.export_run not in names:
        now.desk.export_run = names[0] if names else None
    return gr.update(choices=names, value=now.desk.export_run)


def _cards(adapter: int | None, merged: int | None) -> list[tuple[str, str]]:
    def size(bytes: int | None) -> str:
        return f"{gib(bytes)} · " if bytes is not None else ""

    return [
        (f"Adapter\n{size(adapter)}the small part", "adapter"),
        (f"Merged\n{size(merged)}into the base's own weights", "merged-original"),
        (f"As chatted\n{size(merged)}into the 4-bit rounded weights", "merged-as-chatted"),
    ]
