"""How the held-out loss of a run went: which step was best, and for how long none was better."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

from qlora_studio.core.series import Point


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The held-out losses measured so far, in nats a trained token."""

    before: float | None = None
    """Of the base alone."""
    evaluations: tuple[Point, ...] = ()
    """Step and loss with the adapter, by rising step."""

    def add(self, step: int, loss: float) -> HeldOut:
        """With one more evaluation."""
        return replace(self, evaluations=(*self.evaluations, (step, loss)))

    @property
    def newest(self) -> Point | None:
        return self.evaluations[-1] if self.evaluations else None

    @property
    def best(self) -> Point | None:
        """The lowest finite loss and its step; of equal ones the first."""
        return self.best_of([step for step, _ in self.evaluations])

    def best_of(self, steps: Collection[int]) -> Point | None:
        """The best among these steps; None where none of them was measured, or none was finite."""
        measured = [point for point in self.evaluations if point[0] in steps and math.isfinite(point[1])]
        return min(measured, key=lambda point: (point[1], point[0]), default=None)

    @property
    def since_best(self) -> int:
        """Evaluations after the best one; all of them where none was finite."""
        after = self.best[0] if self.best else -1
        return sum(step > after for step, _ in self.evaluations)

    def is_exhausted(self, patience: int | None) -> bool:
        """Whether so many evaluations in a row brought nothing better; never without a number."""
        return patience is not None and self.since_best >= patience

    @property
    def beats_base(self) -> bool | None:
        """Whether the best loss is below the base's; None where either was not measured."""
        if self.before is None or not self.evaluations:
            return None
        return self.best is not None and self.best[1] < self.before
