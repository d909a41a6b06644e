"""What an objective is: its units, its summed loss, what that is divided by, and its metrics.

An objective never sees the model. It sees one number a row, the summed loss of the row's trained tokens, and answers
with a number for all of them. So the accumulator can cut a step into any micro-batches of rows, also between the rows
of a pair, and the out-of-memory ladder knows nothing of objectives.

One that compares with the run's starting point is made with the row losses of that point, one a row of the data, and
looks them up by `RowLosses.rows`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from qlora_studio.core.example import Example


@dataclass(frozen=True, slots=True)
class RowLosses:
    """One number a row: of a whole step, of a micro-batch, or of an evaluation set."""

    rows: tuple[int, ...]
    """Which rows of the data these are."""
    losses: torch.Tensor
    """(rows,) fp32: minus the summed log-probability of the row's trained tokens, in nats."""
    trained_tokens: torch.Tensor
    """(rows,) fp32: how many tokens that sum has."""


@dataclass(frozen=True, slots=True)
class ObjectiveLoss:
    """What an objective makes of some rows. All of it is a sum over units, and is divided by the same divisor."""

    summed: torch.Tensor
    """Scalar, fp32, differentiable by the row losses."""
    metrics: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Scalars to show beside the loss, by name."""


class Objective(Protocol):
    """One way of learning from rows."""

    @property
    def name(self) -> str:
        """The word for it in settings."""

    @property
    def unit(self) -> str:
        """What a step counts, for people: example, pair."""

    @property
    def couples_rows(self) -> bool:
        """Whether a row's gradient depends on the losses of other rows.

        If so, a first pass without gradients collects the losses of the whole step, and the second weighs each row by
        the derivative of the summed loss. If not, micro-batches are summed as they come, in one pass.
        """

    def units(self, rows: int) -> Sequence[tuple[int, ...]]:
        """The rows of each unit, for data of so many rows. A unit stands whole in one step."""

    def divisor(self, examples: Sequence[Example]) -> float:
        """What the summed loss of these rows is divided by: always those of a whole step, never of a micro-batch."""

    def loss(self, rows: RowLosses) -> ObjectiveLoss:
        """The summed loss and metrics of these rows; whole units where rows are coupled."""
