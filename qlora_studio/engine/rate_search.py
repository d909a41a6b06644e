"""Short trainings at several learning rates, each from the same start over the same rows, and what they come to.

A rate that is best for a few steps is a little high for many, because a long run has time to go slowly; so of rates
that come out alike the lowest is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch

from qlora_studio.core.example import Example, token_lengths
from qlora_studio.core.jobs import RatePoint, RateReport
from qlora_studio.core.steps import Step
from qlora_studio.engine.accumulator import Accumulator, StepRows
from qlora_studio.engine.batches import plan_unit_steps
from qlora_studio.engine.evaluate import evaluate
from qlora_studio.engine.forward import LossFunction, evaluating
from qlora_studio.engine.ladder import MemoryLadder, planned_limits
from qlora_studio.engine.objectives.registry import find_objective
from qlora_studio.engine.setup import Setup
from qlora_studio.engine.updates import Updates, make_optimizer, trained_groups

MOST_ROWS = 64
"""Of the rows held out are enough to tell rates apart."""
ALIKE = 0.01
"""Losses that differ by less than this share come out alike (measured: `docs/recipe.md`)."""
Advanced = Callable[[int, int], None]
"""Hears steps done and total."""


class RateSearch:
    """Trials over one loaded model; its adapter is as it was afterwards."""

    def __init__(self, setup: Setup, steps: int, advanced: Advanced, should_stop: Callable[[], bool]) -> None:
        config, plan, model = setup.config, setup.plan, setup.model
        self.setup, self.advanced, self.should_stop = setup, advanced, should_stop
        self.config = config.replace({"optim.max_steps": steps})
        self.objective = find_objective(setup.objective)
        lengths = token_lengths(setup.train)
        self.steps = plan_unit_steps(self.objective.units(len(setup.train)), lengths, self.config.optim)
        self.measured_on = self._choose_rows()
        model.train()
        self.loss_function = LossFunction(model)
        limits = planned_limits(plan, model)
        offload = plan.offload in ("boundaries", "both")
        self.ladder = MemoryLadder(model, setup.accelerator, limits, offload=offload)
        seed = config.optim.seed
        self.accumulator = Accumulator(self.objective, self.loss_function, setup.train, self.ladder, seed=seed)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.start = [parameter.detach().clone() for parameter in self.parameters]

    def run(self, rates: Sequence[float]) -> RateReport | None:
        """Each rate's loss after the steps, and the rate to take; None where a stop was asked."""
        base = self._loss(adapter=False)
        points: list[RatePoint] = []
        total = len(rates) * len(self.steps)
        for rate in sorted(rates):
            loss = self._try(rate, len(points) * len(self.steps), total)
            if self.should_stop():
                return None
            points.append(RatePoint(rate=rate, loss=loss))
        return RateReport(
            steps=len(self.steps),
            points=tuple(points),
            base_loss=base,
            held_out=bool(self.setup.held_out),
            rate=choose(points, base),
        )

    def _try(self, rate: float, done: int, total: int) -> float | None:
        """The loss after the steps at this rate; None where it is not finite, or a stop was asked."""
        self._reset()
        config = self.config.replace({"optim.learning_rate": rate})
        optimizer = make_optimizer(trained_groups(self.setup.model, config.optim), config, self.setup.plan.optimizer)
        fp16 = self.loss_function.head.dtype == torch.float16
        scaler = torch.amp.GradScaler(self.setup.accelerator.device.type, enabled=fp16)
        updates = Updates(optimizer, config.optim, len(self.steps), scaler)
        try:
            for number, step in enumerate(self.steps, 1):
                if self.should_stop() or not self._take(step, number, updates):
                    return None
                self.advanced(done + number, total)
            loss = self._loss(adapter=True)
            return loss if math.isfinite(loss) else None
        finally:
            optimizer.zero_grad(set_to_none=True)
            self._reset()

    def _take(self, step: Step, number: int, updates: Updates) -> bool:
        """One update; False where it is not finite at any loss scale."""
        while True:
            measured = updates.measure(
                self.accumulator.add_gradients(StepRows(step.rows, number), updates.scaler.scale)
            )
            if measured.finite:
                updates.apply()
                updates.end_step()
                return True
            self.accumulator.refuse_changed()
            if not updates.lower_scale(measured):
                return False

    def _reset(self) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.parameters, self.start, strict=True):
                parameter.copy_(value)

    def _loss(self, *, adapter: bool) -> float:
        off = nullcontext() if adapter else self.setup.model.disable_adapter()
        with evaluating(self.setup.model), off:
            return evaluate(self.objective, self.loss_function, self.measured_on, self.ladder)

    def _choose_rows(self) -> list[Example]:
        """Whole units of the rows held out; without any, the rows of the last steps."""
        held_out = self.setup.held_out
        if not held_out:
            rows = [row for step in self.steps[-4:] for row in step.rows]
            return [self.setup.train[row] for row in rows]
        chosen: list[int] = []
        for unit in self.objective.units(len(held_out)):
            if chosen and len(chosen) + len(unit) > MOST_ROWS:
                break
            chosen += unit
        return [held_out[row] for row in chosen]


def choose(points: Sequence[RatePoint], base: float | None) -> float | None:
    """The lowest rate that comes out like the best one; None where none is finite and better than the base."""
    good = [
        (point.rate, point.loss)
        for point in points
        if point.loss is not None and math.isfinite(point.loss) and (base is None or point.loss < base)
    ]
    if not good:
        return None
    best = min(loss for _, loss in good)
    return min(rate for rate, loss in good if loss <= best * (1 + ALIKE))
