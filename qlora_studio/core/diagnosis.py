"""What a run's curves say, in words with what to change. Pure: both faces derive it from the same progress.

Each rule is a pattern that costs people their result and that nobody should have to read off a curve. The thresholds
are chosen so that a run which learns as it should is never accused; their tests show both sides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from qlora_studio.core.errors import Problem
from qlora_studio.core.held_out import HeldOut
from qlora_studio.core.progress import Progress
from qlora_studio.core.series import Point

OVERFIT_NATS = 0.02
"""A held-out loss this far above its best is a rise and not the noise of a small evaluation set."""
WINDOW = 20
"""Steps whose losses are averaged where a curve's beginning, lowest stretch and end are compared."""
EXPLODED_RATIO, EXPLODED_NATS = 1.5, 0.5
"""The end of a curve exploded where it lies this much above its lowest stretch, in both respects."""
FLAT_SHARE = 0.02
"""A loss that fell by less than this share over three windows or more did not move."""


def diagnose(progress: Progress) -> list[Problem]:
    """What is wrong with how a training goes or went, the gravest first; nothing for a run that learns."""
    if progress.job != "train":
        return []
    held_out = progress.held_out
    losses = progress.losses[-10 * WINDOW :] if len(progress.losses) > 10 * WINDOW else tuple(progress.losses)
    first = tuple(progress.losses[:WINDOW])
    found = [
        _zero(losses),
        _exploded(first, losses),
        _worse_than_base(held_out) if progress.ended or len(held_out.evaluations) > 1 else None,
        _overfitted(held_out, progress) if progress.ended or held_out.since_best > 1 else None,
        _flat(first, losses, len(progress.losses)),
    ]
    return [problem for problem in found if problem is not None]


def _zero(losses: Sequence[Point]) -> Problem | None:
    step = next((step for step, loss in losses if loss == 0.0), None)
    if step is None:
        return None
    return Problem(
        f"The training loss was exactly 0 at step {step}, which no real text gives.",
        "Look at what is trained of your rows on the Data page; if that is right, lower optim.learning_rate.",
    )


def _exploded(first: Sequence[Point], losses: Sequence[Point]) -> Problem | None:
    if len(losses) < 2 * WINDOW:
        return None
    means = [_mean(losses[start : start + WINDOW]) for start in range(0, len(losses) - WINDOW + 1, WINDOW // 2)]
    lowest, end = min(_mean(first), *means), means[-1]
    if math.isfinite(end) and (end < EXPLODED_RATIO * lowest or end - lowest < EXPLODED_NATS):
        return None
    return Problem(
        f"The training loss exploded: it was down to {lowest:.3f} and is now {end:.3f}.",
        "Lower optim.learning_rate to a third of it, or raise optim.warmup_share.",
    )


def _worse_than_base(held_out: HeldOut) -> Problem | None:
    if held_out.beats_base is not False:
        return None
    best = f"{held_out.best[1]:.4f}" if held_out.best else "not finite"
    return Problem(
        f"The adapter is not better than its base: its best held-out loss is {best}, the base's is "
        f"{held_out.before:.4f}.",
        "Lower optim.learning_rate, use more or cleaner rows, or leave the base as it is.",
    )


def _overfitted(held_out: HeldOut, progress: Progress) -> Problem | None:
    best, newest = held_out.best, held_out.newest
    if best is None or newest is None or newest[1] - best[1] < OVERFIT_NATS:
        return None
    step = progress.adapter_step if progress.ended else None
    kept = f" The adapter is that of step {step}." if step is not None else ""
    return Problem(
        f"The run overfits: its held-out loss was {best[1]:.4f} at step {best[0]} and {newest[1]:.4f} at step "
        f"{newest[0]}.{kept}",
        "Train fewer epochs (optim.epochs), lower optim.learning_rate, or let evaluation.patience end the run there.",
    )


def _flat(first: Sequence[Point], losses: Sequence[Point], steps: int) -> Problem | None:
    if steps < 3 * WINDOW:
        return None
    begun, end = _mean(first), _mean(losses[-WINDOW:])
    if not math.isfinite(end) or abs(begun - end) >= FLAT_SHARE * abs(begun) or begun == 0.0:
        return None
    return Problem(
        f"The training loss has hardly moved in {steps} steps: {begun:.3f} at first, {end:.3f} now.",
        "Raise optim.learning_rate to three times of it, and check that the answers are what is trained.",
    )


def _mean(points: Sequence[Point]) -> float:
    return sum(value for _, value in points) / len(points) if points else math.nan
