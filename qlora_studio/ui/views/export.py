"""Before, during and after an export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qlora_studio.core.events import Checked
from qlora_studio.core.exports import (
    GGUF_CHOICES,
    MERGE_CHOICES,
    PACK_PARTS,
    ExportOptions,
    ExportSizes,
    LoadCommand,
    find_export_kind,
    list_choices,
)
from qlora_studio.core.progress import JobView, Progress
from qlora_studio.core.verdict import Verdict, describe_losses, find_verdict
from qlora_studio.core.words import about, clock
from qlora_studio.ui.views.html import (
    Html,
    bar,
    bullets,
    card,
    chip,
    empty,
    error_card,
    gib,
    gib_of,
    join,
    more,
    number,
    tag,
)
from qlora_studio.ui.views.side import state_chip


@dataclass(frozen=True, slots=True)
class Note:
    """One thing to know before an export."""

    kind: Literal["good", "warn", "bad"]
    text: str


def worst_verdict(progress: Progress) -> Verdict | None:
    """The verdict on a whole export; None where nothing was compared."""
    order = ("bad", "warn", "good")
    verdicts = [find_verdict(check) for check in progress.checks]
    return min(verdicts, key=lambda verdict: order.index(verdict.kind), default=None)


def cards(options: ExportOptions, sizes: ExportSizes | None) -> list[tuple[str, str]]:
    """The kinds with their sizes in bytes, where these are known, for the other options as they stand."""
    items = []
    for kind in list_choices():
        one = ExportOptions(kind, options.merge_into, options.gguf, options.parts)
        size = one.result_bytes(sizes) if sizes is not None else None
        items.append(
            (f"{_headline(kind.title)}\n{f'{gib(size)} · ' if size is not None else ''}{kind.description}", kind.name)
        )
    return items


def merge_cards() -> list[tuple[str, str]]:
    """The ways to merge, as they are offered."""
    return [(f"{choice.title}\n{choice.description}", choice.name) for choice in MERGE_CHOICES]


def gguf_items() -> list[tuple[str, str]]:
    """The precisions of a GGUF file, as they are offered."""
    return [(f"{choice.name}: {choice.description}", choice.name) for choice in GGUF_CHOICES]


def part_items() -> list[tuple[str, str]]:
    """What a pack can hold, as it is offered."""
    return [(_headline(find_export_kind(name).title), name) for name in PACK_PARTS]


def _headline(title: str) -> str:
    """A title with a capital letter at its beginning, its others as they are."""
    return title[:1].upper() + title[1:]


def nothing_to_export() -> Html:
    return empty(
        "Nothing to export yet", "An adapter appears here as soon as a run has saved one. Begin on the Train page."
    )


def readiness_line(sentence: str) -> Html:
    return tag("p", sentence[:1].upper() + sentence[1:], class_="qs-ready")


def checklist(notes: Sequence[Note]) -> Html:
    words = {"good": "fine", "warn": "look", "bad": "missing"}
    items = [
        tag("li", tag("span", words[note.kind], class_="qs-hidden"), note.text, class_=note.kind) for note in notes
    ]
    return card("Before you export", tag("ul", *items, class_="qs-checks"))


def export_card(job: JobView, commands: Sequence[LoadCommand] = ()) -> Html:
    """Where an export stands, and when it is done, where it is, how it compares with the chat and how it is opened."""
    progress, state = job.progress, job.state
    if state == "failed":
        return error_card(
            [part for part in (progress.message, progress.hint) if part],
            "The export failed; nothing was left half-written",
        )
    if state == "interrupted":
        return error_card(
            ["Its process exited unexpectedly. Nothing was left half-written; start it again."],
            "The export was interrupted",
        )
    if not progress.ended:
        done = gib_of(progress.done, progress.total) if progress.unit == "bytes" and progress.total else ""
        left = f", {about(progress.phase_seconds_left)} left" if progress.phase_seconds_left else ""
        return card(
            "Exporting",
            bar(progress.share, "Export progress"),
            tag("p", f"{progress.phase or 'starting'} … {done}{left}", class_="qs-small"),
            aside=state_chip(state),
        )
    written = [
        join((tag("b", exported.what), f", {gib(exported.bytes)}: ", tag("code", exported.path)))
        for exported in progress.exported
    ]
    verdict = worst_verdict(progress)
    return card(
        "Export",
        tag("p", tag("b", verdict.sentence), f" {verdict.hint}", class_=f"qs-verdict {verdict.kind}")
        if verdict
        else "",
        bullets([*written, *map(_compared, progress.checks), *progress.notes]),
        *map(_command, commands if progress.exported else ()),
        aside=join(
            (number(clock(job.seconds)), " ", chip(verdict.word, verdict.kind) if verdict else state_chip(state))
        ),
        kind="qs-over" if verdict and verdict.kind == "bad" else "",
    )


def _command(command: LoadCommand) -> Html:
    """How one program opens the export, to copy."""
    copy = tag(
        "button",
        "Copy",
        type="button",
        class_="qs-copy",
        data_copy=command.text,
        aria_label=f"Copy for {command.program}",
    )
    return more(
        f"Open in {command.program}", copy, tag("pre", tag("code", command.text), class_="qs-load", tabindex="0")
    )


def _compared(check: Checked) -> str:
    return (
        f"Compared ({check.what}): {check.identical_answers} of {check.answers} answers word for word those of the chat, "
        f"the same next token at {check.same_top1:.1%} of {check.positions} places, KL divergence {check.kl:.4f} nats."
        f"{describe_losses(check)}"
    )
