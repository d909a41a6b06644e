"""How a step is cut into micro-batches, and the tensors of one.

Which rows make a step (`core.steps`) depends on seed and data alone; only the cutting depends on memory, and the sum of
losses and gradients over a step does not depend on the cutting.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qlora_studio.core.example import IGNORED, Example
from qlora_studio.core.steps import Step as Step
from qlora_studio.core.steps import plan_steps as plan_steps


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
