"""A run as it goes: figures, curves, log lines, and how it ended."""

from __future__ import annotations

from typing import Any

from qlora_studio.core.diagnosis import diagnose
from qlora_studio.core.progress import Progress
from qlora_studio.core.runs import RunSummary, RunView
from qlora_studio.core.words import clock
from qlora_studio.ui.fields import in_labels
from qlora_studio.ui.views.chart import line, lines
from qlora_studio.ui.views.html import Html, Tile, empty, error_card, join, short_count, tag, tiles

LOG_STEPS = 40
"""Steps in the log; the curve shows them all."""


def run_mark(run: RunSummary | None) -> object:
    """Changes whenever a run would look different."""
    return run and (run.name, run.state, run.step, run.total_steps, run.held_out, run.has_adapter, run.peak_bytes)


def curve_mark(run: RunView | None) -> object:
    """Changes whenever the curves of a run would."""
    return run and (run.name, run.progress.step, run.progress.evaluations[-1:], run.progress.base_loss)


def run_tiles(run: RunView | None) -> Html:
    if run is None:
        return tiles(
            [
                Tile("Train loss", "–", "no run yet"),
                Tile("Held-out loss", "–"),
                Tile("Speed", "–", "tokens / s"),
                Tile("Time left", "–"),
            ]
        )
    progress, going = run.progress, run.at_work
    last = progress.last
    evaluation = f"{progress.evaluations[-1][1]:.3f}" if progress.evaluations else "–"
    before = f"before: {progress.base_loss:.3f}" if progress.base_loss is not None else "on the evaluation set"
    return tiles(
        [
            Tile(
                "Train loss",
                f"{last.loss:.3f}" if last else "–",
                f"step {progress.step} of {progress.total_steps}" if last else progress.phase,
            ),
            Tile("Held-out loss", evaluation, before),
            Tile("Speed", short_count(last.tokens_per_second) if last else "–", "tokens / s"),
            Tile(
                "Time left",
                clock(last.seconds_left) if last and going else "–",
                run.state if not going else "until the last step",
            )
            if going or run.seconds is None
            else Tile("Took", clock(run.seconds), run.state),
        ]
    )


def evaluation_losses(progress: Progress) -> tuple[tuple[int, float], ...]:
    """Held-out losses by step; the base's own stands at step 0."""
    return (*(((0, progress.base_loss),) if progress.base_loss is not None else ()), *progress.evaluations)


def loss_lines(progress: Progress | None) -> dict[str, Any]:
    """Training and held-out loss over the steps."""
    if progress is None:
        return lines([])
    series = [
        line("train", 0, progress.losses, smooth=True),
        line("evaluation", 2, evaluation_losses(progress), dots=True),
    ]
    return lines(series, progress.total_steps or None)


def ending(run: RunView | None) -> Html:
    """What a person has to know: how a run that did not end well ended, and what its curves say of its result."""
    return join((_broken(run), _diagnosis(run.progress))) if run else Html("")


def _diagnosis(progress: Progress) -> Html:
    found = diagnose(progress)
    return (
        error_card([f"{problem.message} {problem.hint}" for problem in found], "Its curves say") if found else Html("")
    )


def _broken(run: RunView) -> Html:
    if run.state not in ("failed", "interrupted"):
        return Html("")
    if run.state == "failed":
        return error_card(
            [part for part in (run.progress.message, run.progress.hint) if part], f"The run '{run.title}' failed"
        )
    return error_card(
        [
            "Its process exited unexpectedly: it was ended from outside, or memory ran out.",
            "What it saved is kept."
            if run.has_adapter
            else "It had not saved an adapter yet; a smaller plan may help.",
        ],
        f"The run '{run.title}' was interrupted",
    )


def log_lines(progress: Progress) -> list[str]:
    """Notes first, then what each step brought, the newest last."""
    lines = [f"· {in_labels(note)}" for note in progress.notes]
    lines += [f"· step {retry.step} again, smaller: {retry.change} ({retry.reason})" for retry in progress.retries]
    lines += [f"· step {skip.step} left out: {skip.reason}" for skip in progress.skipped]
    measured = dict(progress.evaluations)
    if progress.base_loss is not None:
        lines.append(f"step {0:>5}            evaluation {progress.base_loss:.4f}")
    for step, loss in progress.losses[-LOG_STEPS:]:
        lines.append(
            f"step {step:>5}  loss {loss:.4f}" + (f"  evaluation {measured[step]:.4f}" if step in measured else "")
        )
    if progress.ended:
        lines.append(f"· {progress.state}" + (f": {in_labels(progress.message)}" if progress.message else ""))
    return lines


def log(run: RunView | None) -> Html:
    if run is None:
        return empty("Nothing is running", "Choose your data and a preset, look at the memory plan, and press Start.")
    lines = log_lines(run.progress) or [f"{run.progress.phase or 'starting'} …"]
    return tag("pre", "\n".join(lines), class_="qs-log", tabindex=0, aria_label="Log of the run")
