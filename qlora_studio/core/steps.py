"""Which rows make an optimizer step. Pure arithmetic on lengths, for the loop and for everyone who foretells it."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from qlora_studio.core.config import OptimConfig

EVALUATIONS = 5
"""How often the held-out loss is measured where nobody says."""


@dataclass(frozen=True, slots=True)
class Step:
    """The rows of one optimizer step, and how many epochs are over after it."""

    rows: tuple[int, ...]
    epoch: float


def plan_steps(lengths: Sequence[int], optim: OptimConfig) -> list[Step]:
    """All optimizer steps of a run: a seeded shuffle an epoch, cut where `batch_tokens` is full, across epoch ends.

    They depend on lengths in tokens, seed and settings alone, never on memory. A run that once ended and was given more
    epochs keeps its last step as it was, however few rows that held.
    """
    ends = {max(1, round(len(lengths) * epochs)) for epochs in optim.ended_at}
    total_rows = max(1, round(len(lengths) * optim.epochs))
    steps: list[Step] = []
    rows: list[int] = []
    tokens = seen = 0
    order: list[int] = []
    while seen < total_rows:
        if not order:
            order = list(range(len(lengths)))
            random.Random(f"{optim.seed}:{seen // len(lengths)}").shuffle(order)
            order.reverse()
        row = order.pop()
        if rows and tokens + lengths[row] > optim.batch_tokens:
            steps.append(Step(tuple(rows), seen / len(lengths)))
            rows, tokens = [], 0
            if optim.max_steps and len(steps) == optim.max_steps:
                return steps
        rows.append(row)
        tokens += lengths[row]
        seen += 1
        if seen in ends and seen < total_rows:
            steps.append(Step(tuple(rows), seen / len(lengths)))
            rows, tokens = [], 0
            if optim.max_steps and len(steps) == optim.max_steps:
                return steps
    steps.append(Step(tuple(rows), seen / len(lengths)))
    return steps


def evaluation_steps(total: int, every: int | None) -> set[int]:
    """After which of `total` steps the held-out loss is measured: every so many, five times unasked, and at the end."""
    stride = every or max(1, math.ceil(total / EVALUATIONS))
    return {step for step in range(1, total + 1) if step % stride == 0} | {total}
