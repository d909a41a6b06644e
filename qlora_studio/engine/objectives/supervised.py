"""Supervised fine-tuning: the mean next-token loss over all trained tokens of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qlora_studio.core.example import Example
from qlora_studio.engine.objectives.protocol import ObjectiveLoss, RowLosses


@dataclass(frozen=True, slots=True)
class Supervised:
    """Every trained token counts alike, however long its row is."""

    name = "supervised"
    unit = "example"
    couples_rows = False

    def units(self, rows: int) -> Sequence[tuple[int, ...]]:
        return [(row,) for row in range(rows)]

    def divisor(self, examples: Sequence[Example]) -> float:
        """The trained tokens of the step; 1 where there are none."""
        return max(1, sum(example.trained_tokens for example in examples))

    def loss(self, rows: RowLosses) -> ObjectiveLoss:
        return ObjectiveLoss(rows.losses.sum())
