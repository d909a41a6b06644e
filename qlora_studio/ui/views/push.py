"""Handing a finished export on: what can be chosen, and how far it is."""

from __future__ import annotations

from qlora_studio.core.jobs import PushReport
from qlora_studio.core.progress import JobView
from qlora_studio.core.push import DESTINATIONS
from qlora_studio.ui.views.html import Html, bar, card, error_card, gib_of, tag


def destinations() -> list[tuple[str, str]]:
    """The destinations as they are offered."""
    return [(f"{one.title}\n{one.description}", one.name) for one in DESTINATIONS]


def push_card(job: JobView) -> Html:
    """How far it is, and where the export can be found when it is done."""
    progress = job.progress
    if job.state in ("failed", "interrupted"):
        parts = [part for part in (progress.message, progress.hint) if part] or ["Its process exited unexpectedly."]
        return error_card(parts, "It was not handed on; the export is where it was")
    if not progress.ended:
        done = gib_of(progress.done, progress.total) if progress.unit == "bytes" and progress.total else ""
        return card(
            "Handing on",
            bar(progress.share, "Progress"),
            tag("p", f"{progress.phase or 'starting'} … {done}", class_="qs-small"),
        )
    if not isinstance(progress.report, PushReport):
        return card("Stopped", tag("p", "Nothing was handed on.", class_="qs-small"))
    return card("Handed on", tag("p", tag("code", progress.report.place)))
