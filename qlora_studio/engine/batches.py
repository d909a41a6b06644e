"""Steps of whole units, how a step is cut into micro-batches, and the tensors of one.

Which rows make a step (`core.steps`) depends on seed and data alone; only the cutting depends on memory, and the sum of
losses and gradients over a step does not depend on the cutting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qlora_studio.core.config import OptimConfig
from qlora_studio.core.example import IGNORED, Example
from qlora_studio.core.steps import Step, plan_steps


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows that go forward and backward together, padded on the right."""

    rows: tuple[int, ...]
    """Which rows of the data these are, in the order of the batch."""
    ids: torch.Tensor
    """(batch, length)"""
    labels: torch.Tensor
    """(batch, length); IGNORED where nothing is trained."""
    lengths: tuple[int, ...]
    """Tokens of each row without padding."""


def plan_unit_steps(units: Sequence[tuple[int, ...]], lengths: Sequence[int], optim: OptimConfig) -> list[Step]:
    """All optimizer steps of a run whose units (an example, a pair) must each stand whole in one step."""
    steps = plan_steps([sum(lengths[row] for row in unit) for unit in units], optim)
    return [Step(tuple(row for unit in step.rows for row in units[unit]), step.epoch) for step in steps]


def micro_batches(rows: Sequence[int], lengths: Sequence[int], micro_batch_tokens: int) -> list[list[int]]:
    """Positions in `rows`, in groups whose rows x longest row stays within `micro_batch_tokens`; longest rows first.

    `lengths` are those of the data, by row. A row longer than the bound stands alone: it cannot be made smaller.
    """
    groups: list[list[int]] = []
    for place in sorted(range(len(rows)), key=lambda place: (-lengths[rows[place]], rows[place])):
        longest = lengths[rows[groups[-1][0]]] if groups else 0
        if groups and longest * (len(groups[-1]) + 1) <= micro_batch_tokens:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


def largest_micro_batch(steps: Sequence[Step], lengths: Sequence[int], micro_batch_tokens: int) -> tuple[int, ...]:
    """The rows of that micro-batch of a run which takes the most memory: most tokens with padding, then most rows."""
    batches = (
        tuple(step.rows[place] for place in places)
        for step in steps
        for places in micro_batches(step.rows, lengths, micro_batch_tokens)
    )
    return max(batches, key=lambda rows: (len(rows) * max(lengths[row] for row in rows), len(rows)))


def collate(examples: Sequence[Example], rows: Sequence[int], device: torch.device) -> MicroBatch:
    """The micro-batch of these rows of the data, padded to the longest.

    Causal attention never looks right, and padding carries no label, so neither mask nor position ids are needed: the
    real tokens are computed exactly as if they stood alone.
    """
    lengths = tuple(len(examples[row].input_ids) for row in rows)
    ids = torch.zeros(len(rows), max(lengths), dtype=torch.long)
    labels = torch.full((len(rows), max(lengths)), IGNORED, dtype=torch.long)
    for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        ids[index, :length] = torch.tensor(examples[row].input_ids)
        labels[index, :length] = torch.tensor(examples[row].labels())
    return MicroBatch(tuple(rows), ids.to(device, non_blocking=True), labels.to(device, non_blocking=True), lengths)
