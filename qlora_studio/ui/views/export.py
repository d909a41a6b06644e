"""Before, during and after an export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qlora_studio.core.progress import JobView
from qlora_studio.core.words import clock
from qlora_studio.ui.views.html import Html, bar, bullets, card, empty, gib, join, number, says_error, tag
from qlora_studio.ui.views.side import state_chip


@dataclass(frozen=True, slots=True)
class Check:
    """One thing to know before an export."""

    kind: Literal["good", "warn", "bad"]
    says: str


def nothing_to_export() -> Html:
    return empty(
        "Nothing to export yet", "An adapter appears here as soon as a run has saved one. Begin on the Train page."
    )


def checklist(checks: Sequence[Check]) -> Html:
    words = {"good": "fine", "warn": "look", "bad": "missing"}
    return card(
        "Before you export",
        tag(
            "ul",
            *(
                tag("li", tag("span", words[check.kind], class_="qs-hidden"), check.says, class_=check.kind)
                for check in checks
            ),
            class_="qs-checks",
        ),
    )


def export_card(job: JobView) -> Html:
    """Where an export stands, and when it is done, where it is and how it compares with the chat."""
    progress, state, seconds = job.progress, job.state, job.seconds
    if state == "failed":
        return says_error(
            [part for part in (progress.message, progress.hint) if part],
            "The export failed; nothing was left half-written",
        )
    if state == "interrupted":
        return says_error(
            ["Its process is gone. Nothing was left half-written; start it again."], "The export was interrupted"
        )
    if not progress.ended:
        done = f"{gib(progress.done)} of {gib(progress.total)}" if progress.unit == "bytes" and progress.total else ""
        return card(
            "Exporting",
            bar(progress.share, "Export progress"),
            tag("p", f"{progress.phase or 'starting'} … {done}", class_="qs-small"),
            aside=state_chip("running"),
        )
    said: list[object] = [
        join((tag("b", exported.what), f", {gib(exported.bytes)}: ", tag("code", exported.path)))
        for exported in progress.exported
    ]
    for check in progress.checks:
        said.append(
            f"Checked ({check.what}): {check.identical_answers} of {check.answers} answers word for word those of the chat, "
            f"the same next word at {check.same_top1:.1%} of the places, KL divergence {check.kl:.4f} nats."
        )
    return card("Export", bullets(said), aside=join((number(clock(seconds)), " ", state_chip(state))))
