"""Runs beside each other, and one run whole."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from typing import Any

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.held_out import HeldOut
from qlora_studio.core.progress import JobView, Progress
from qlora_studio.core.record import RunRecord
from qlora_studio.core.runs import RunSummary, RunView, differing_settings, move_along
from qlora_studio.core.series import Along
from qlora_studio.core.words import clock
from qlora_studio.ui.fields import in_labels, label
from qlora_studio.ui.views.chart import line, lines
from qlora_studio.ui.views.html import (
    Html,
    Tile,
    bar,
    bullets,
    card,
    empty,
    error_card,
    gib,
    join,
    more,
    number,
    table,
    tag,
    tiles,
)
from qlora_studio.ui.views.plan import proof_card
from qlora_studio.ui.views.run import ending, evaluation_losses
from qlora_studio.ui.views.side import state_chip

HEADINGS = ("Run", "State", "Base", "Rank", "Train loss", "Best eval", "Steps", "Time", "Peak", "Begun", "Said of it")


def run_rows(runs: Sequence[RunSummary]) -> list[list[str]]:
    """The table of all runs, text only."""
    return [
        [
            run.name,
            "unreadable" if run.unreadable else run.state,
            run.base or "–",
            str(run.rank or "–"),
            f"{run.loss:.3f}" if run.loss is not None else "–",
            f"{run.best_held_out:.3f}" if run.best_held_out is not None else "–",
            f"{run.step}/{run.total_steps}" if run.total_steps else "–",
            clock(run.seconds),
            gib(run.peak_bytes) if run.peak_bytes else "–",
            time.strftime("%m-%d %H:%M", time.localtime(run.created)),
            _labels_of(run),
        ]
        for run in runs
    ]


def _labels_of(run: RunSummary) -> str:
    """Pin, tags, and the title or the note where a person gave one."""
    words = ["★"] if run.pinned else []
    words += [f"#{one}" for one in run.tags]
    words += [run.note.partition("\n")[0][:60]] if run.note else []
    return " ".join(words)


def record_link(name: str, record: RunRecord) -> Html:
    """The record of a run as a file that the browser saves; it never lies on the disk for that."""
    data = base64.b64encode(record.model_dump_json(indent=1).encode()).decode()
    link = tag(
        "a", "Save the record", href=f"data:application/json;base64,{data}", download=f"{name}.record.json",
        class_="qs-link",
    )  # fmt: skip
    return tag(
        "p",
        link,
        ": settings, hashes, versions and losses, from which the command line runs it again.",
        class_="qs-small",
    )


def deletion_card(run: RunView, size_bytes: int, referring: Sequence[str] = ()) -> Html:
    """What goes with a run, and what refers to it, before it goes."""
    kept = "Exports of it lie in folders of their own and stay." if run.has_adapter else ""
    sentences = [f"{gib(size_bytes)} of checkpoints, adapter, evaluations and journal go with it.", kept]
    sentences += referring
    if run.labels.pinned:
        sentences.append("It is pinned: unpin it first.")
    return error_card([one for one in sentences if one], f"Delete “{run.title}” ({run.name})?")


def differences_card(runs: Sequence[RunView]) -> Html:
    """The settings in which compared runs differ, side by side, and what came of each."""
    if len(runs) < 2:
        return Html("")
    rows: list[Sequence[object]] = [
        (label(field), *(number(_short(value)) for value in values))
        for field, values in differing_settings(runs)
        if field != "saving.name"
    ]
    rows += [
        ("Best held-out loss", *(number(_best(run)) for run in runs)),
        ("Time", *(number(clock(run.seconds)) for run in runs)),
    ]
    return card("What tells them apart", table(("", *(run.title for run in runs)), rows, "Differing settings"))


def _best(run: RunView) -> str:
    best = run.progress.held_out.best
    return f"{best[1]:.4f} at step {best[0]}" if best else "–"


def no_runs() -> Html:
    return empty(
        "No runs yet",
        "Every run you start is kept here with its settings, curve, plan and peak. Begin on the Data page.",
    )


def unreadable_run(run: RunSummary) -> Html:
    """A run that cannot be opened, with the reason."""
    return error_card([run.unreadable], f"The run '{run.title}' cannot be read") if run.unreadable else Html("")


def compared_lines(runs: Sequence[RunView], *, of_evaluation: bool = False, along: Along = "step") -> dict[str, Any]:
    """The same loss of several runs, by step, by tokens seen, or by seconds of training."""
    series = []
    for index, run in enumerate(runs):
        losses = evaluation_losses(run.progress) if of_evaluation else run.progress.losses
        points = move_along(run.progress, losses, along)
        series.append(line(run.name, index, points, smooth=not of_evaluation, dots=of_evaluation))
    return lines(series, unit=along)


def peaks_card(runs: Sequence[RunView]) -> Html:
    """The most memory each run held."""
    measured = [run for run in runs if run.progress.peak_bytes]
    if not measured:
        return Html("")
    top = max(
        max(run.progress.peak_bytes, run.progress.plan.comparable_budget_bytes if run.progress.plan else 0)
        for run in measured
    )
    bars = [
        part
        for run in measured
        for part in (
            tag("span", run.name, title=run.name),
            bar(run.progress.peak_bytes / top, f"Peak of {run.name}", _near(run.progress)),
            tag("b", gib(run.progress.peak_bytes), class_="qs-number"),
        )
    ]
    return card("Peak memory", tag("div", *bars, class_="qs-bars"), aside=number(f"of {gib(top)}"))


def run_details(run: RunView) -> Html:
    """One run: how it went, its settings, planned beside measured, notes and samples."""
    progress = run.progress
    held_out = progress.held_out
    figures = tiles(
        [
            Tile("Train loss", f"{progress.last.loss:.3f}" if progress.last else "–", f"{progress.step} steps"),
            Tile("Held-out loss", *_losses(held_out)),
            Tile("Took", clock(run.seconds), time.strftime("%d %b %Y, %H:%M", time.localtime(run.created))),
            Tile("Adapter", _adapter_of(run), f"rank {run.config.lora.rank}"),
        ]
    )
    notes = [
        *map(in_labels, progress.notes),
        *(f"Step {retry.step} was computed again, smaller: {retry.change}." for retry in progress.retries),
    ]
    return join(
        (
            tag("header", tag("h3", run.title), state_chip(run.state), class_="qs-run-head"),
            ending(run),
            figures,
            proof_card(progress),
            samples_card(progress),
            card("Notes", bullets(notes)) if notes else "",
            card("", more("Settings", _settings(run))),
        )
    )


def _losses(held_out: HeldOut) -> tuple[str, str]:
    """The best held-out loss, and where it stands beside its base."""
    best = held_out.best
    base = [f"base {held_out.before:.3f}"] if held_out.before is not None else []
    return (f"{best[1]:.3f}", ", ".join([f"best, step {best[0]}", *base])) if best else ("–", ", ".join(base))


def _adapter_of(run: RunView) -> str:
    if not run.has_adapter:
        return "none"
    step = run.progress.adapter_step
    return "saved" if step is None else f"step {step}"


def answers_card(runs: Sequence[RunView], answers: Sequence[tuple[str, Sequence[str | None]]]) -> Html:
    """What compared runs answered to the same prompts, side by side."""
    if not answers:
        return Html("")
    rows = [
        (tag("b", prompt), *(tag("div", one or "–", class_="qs-answer") for one in texts)) for prompt, texts in answers
    ]
    return card("Answers to the same prompts", table(("", *(run.title for run in runs)), rows, "Answers side by side"))


def samples_card(progress: Progress) -> Html:
    """The answers to the sample prompts while the run was trained, each prompt a timeline."""
    if not progress.samples:
        return Html("")
    timelines = []
    for prompt in dict.fromkeys(sample.prompt for sample in progress.samples):
        rows = [
            (
                number("base" if sample.side == "base" else f"step {sample.step}"),
                tag("div", sample.answer, class_="qs-answer"),
            )
            for sample in progress.samples
            if sample.prompt == prompt
        ]
        timelines += [tag("p", tag("b", prompt)), table(("When", "Answer"), rows, f"Answers to “{prompt}”")]
    return card("Sample answers", *timelines)


def evaluation_card(job: JobView) -> Html:
    """An evaluation as it goes: loss of both on the evaluation set, and their answers side by side."""
    progress, state, seconds = job.progress, job.state, job.seconds
    if state == "failed":
        return error_card([part for part in (progress.message, progress.hint) if part], "The evaluation failed")
    if state == "interrupted":
        return error_card(["Its process exited unexpectedly; evaluate again."], "The evaluation was interrupted")
    tuned = progress.evaluations[-1][1] if progress.evaluations else None
    figures = tiles(
        [
            Tile("Held-out loss, base", f"{progress.base_loss:.3f}" if progress.base_loss is not None else "–"),
            Tile("Held-out loss, adapter", f"{tuned:.3f}" if tuned is not None else "–"),
            Tile("Took", clock(seconds), state),
        ]
    )
    prompts = list(dict.fromkeys(sample.prompt for sample in progress.samples))
    answers = {(sample.prompt, sample.side): sample.answer for sample in progress.samples}
    rows = [
        (
            tag("b", prompt),
            *(tag("div", answers.get((prompt, one), "…"), class_="qs-answer") for one in ("base", "tuned")),
        )
        for prompt in prompts
    ]
    under_way = "" if progress.ended else tag("p", f"{progress.phase or 'starting'} …", class_="qs-small")
    beside = table(("Prompt", "Base", "Adapter"), rows, "Answers of base and adapter") if rows else ""
    return join((figures, under_way, beside))


def _settings(run: RunView) -> Html:
    """The settings that are not the default, then where everything lies."""
    standard = TrainConfig().model_dump(mode="json")
    own = run.config.model_dump(mode="json")
    rows = [
        (label(f"{section}.{name}"), number(_short(value)))
        for section, own_fields in own.items()
        for name, value in own_fields.items()
        if value != standard[section][name]
    ]
    return join(
        (
            table(("Setting", "Value"), rows, "Settings that differ from the default"),
            tag("p", f"Folder: {run.folder}", class_="qs-small"),
        )
    )


def _short(value: object) -> str:
    if isinstance(value, list):
        return (
            ", ".join(
                f"{item['name']} × {item['weight']:g}" if isinstance(item, dict) and "weight" in item else str(item)
                for item in value
            )
            or "–"
        )
    return str(value)


def _near(progress: Progress) -> str:
    return "warn" if progress.plan and progress.peak_bytes > 0.95 * progress.plan.comparable_budget_bytes else ""
