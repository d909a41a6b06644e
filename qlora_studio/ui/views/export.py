"""Before, during and after an export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qlora_studio.core.events import Checked
from qlora_studio.core.exports import list_choices
from qlora_studio.core.progress import JobView, Progress
from qlora_studio.core.verdict import Verdict, describe_losses, find_verdict
from qlora_studio.core.words import clock
from qlora_studio.ui.views.html import Html, bar, bullets, card, chip, empty, gib, gib_of, join, number, says_error, tag
from qlora_studio.ui.views.side import state_chip


@dataclass(frozen=True, slots=True)
class Note:
    """One thing to know before an export."""

    kind: Literal["good", "warn", "bad"]
    says: str


def worst_verdict(progress: Progress) -> Verdict | None:
    """The verdict on a whole export; None where nothing was compared."""
    order = ("bad", "warn", "good")
    verdicts = [find_verdict(check) for check in progress.checks]
    return min(verdicts, key=lambda verdict: order.index(verdict.kind), default=None)


def cards(adapter: int | None, merged: int | None) -> list[tuple[str, str]]:
    """The choices of the page with their sizes in bytes, where these are known."""

    def size(bytes: int | None) -> str:
        return f"{gib(bytes)} · " if bytes is not None else ""

    sizes = {"adapter": adapter, "base": merged}
    return [
        (f"{choice.title}\n{size(sizes[choice.kind.as_large_as])}{choice.says}", choice.name)
        for choice in list_choices()
    ]


def nothing_to_export() -> Html:
    return empty(
        "Nothing to export yet", "An adapter appears here as soon as a run has saved one. Begin on the Train page."
    )


def readiness_line(sentence: str) -> Html:
    return tag("p", sentence[:1].upper() + sentence[1:], class_="qs-ready")


def checklist(notes: Sequence[Note]) -> Html:
    words = {"good": "fine", "warn": "look", "bad": "missing"}
    items = [
        tag("li", tag("span", words[note.kind], class_="qs-hidden"), note.says, class_=note.kind) for note in notes
    ]
    return card("Before you export", tag("ul", *items, class_="qs-checks"))


def export_card(job: JobView) -> Html:
    """Where an export stands, and when it is done, where it is and how it compares with the chat."""
    progress, state = job.progress, job.state
    if state == "failed":
        return says_error(
            [part for part in (progress.message, progress.hint) if part],
            "The export failed; nothing was left half-written",
        )
    if state == "interrupted":
        return says_error(
            ["Its process exited unexpectedly. Nothing was left half-written; start it again."],
            "The export was interrupted",
        )
    if not progress.ended:
        done = gib_of(progress.done, progress.total) if progress.unit == "bytes" and progress.total else ""
        return card(
            "Exporting",
            bar(progress.share, "Export progress"),
            tag("p", f"{progress.phase or 'starting'} … {done}", class_="qs-small"),
            aside=state_chip(state),
        )
    written = [
        join((tag("b", exported.what), f", {gib(exported.bytes)}: ", tag("code", exported.path)))
        for exported in progress.exported
    ]
    verdict = worst_verdict(progress)
    return card(
        "Export",
        tag("p", tag("b", verdict.says), f" {verdict.hint}", class_=f"qs-verdict {verdict.kind}") if verdict else "",
        bullets([*written, *map(_compared, progress.checks)]),
        aside=join(
            (number(clock(job.seconds)), " ", chip(verdict.word, verdict.kind) if verdict else state_chip(state))
        ),
        kind="qs-over" if verdict and verdict.kind == "bad" else "",
    )


def _compared(check: Checked) -> str:
    return (
        f"Compared ({check.what}): {check.identical_answers} of {check.answers} answers word for word those of the chat, "
        f"the same next token at {check.same_top1:.1%} of {check.positions} places, KL divergence {check.kl:.4f} nats."
        f"{describe_losses(check)}"
    )
