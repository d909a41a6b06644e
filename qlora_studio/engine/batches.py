"""Which rows make a step, and how a step is cut into what fits at once. Pure arithmetic on lengths, but for `collate`.

Steps, their order and their rows depend on seed and data alone; only the cutting depends on memory, and the sum of
losses and gradients over a step does not depend on the cutting.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qlora_studio.core.config import OptimConfig
from qlora_studio.core.example import IGNORED, Example


@dataclass(frozen=True, slots=True)
class Step:
    """The rows of one optimizer step, and how many epochs are over after it."""

    rows: tuple[int, ...]
    epoch: float


def plan_steps(lengths: Sequence[int], optim: OptimConfig) -> list[Step]:
    """All optimizer steps of a run: a seeded shuffle an epoch, cut where `batch_tokens` is full, across epoch ends."""
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
    steps.append(Step(tuple(rows), seen / len(lengths)))
    return steps


def micro_batches(rows: Sequence[int], lengths: Sequence[int], micro_batch_tokens: int) -> list[list[int]]:
    """The rows of a step in groups whose rows x longest row stays within `micro_batch_tokens`; longest rows first.

    A row longer than that stands alone: it cannot be made smaller.
    """
    groups: list[list[int]] = []
    for row in sorted(rows, key=lambda row: (-lengths[row], row)):
        longest = lengths[groups[-1][0]] if groups else 0
        if groups and longest * (len(groups[-1]) + 1) <= micro_batch_tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def collate(examples: Sequence[Example], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels (batch, longest), padded on the right.

    Causal attention never looks right, and padding carries no label, so neither mask nor position ids are needed: the
    real tokens are computed exactly as if they stood alone.
    """
    longest = max(len(example.input_ids) for example in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    labels = torch.full((len(examples), longest), IGNORED, dtype=torch.long)
    for index, example in enumerate(examples):
        length = len(example.input_ids)
        ids[index, :length] = torch.tensor(example.input_ids)
        labels[index, :length] = torch.tensor(example.labels())
    return ids.to(device, non_blocking=True), labels.to(device, non_blocking=True)
