"""The gradients of one step, summed over micro-batches that fit in memory. It knows neither optimizer nor schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from qlora_studio.core.errors import StudioError
from qlora_studio.core.example import Example, token_lengths
from qlora_studio.engine.forward import LossFunction
from qlora_studio.engine.kernels.dropout import find_row_seeds
from qlora_studio.engine.ladder import Limits, MemoryLadder
from qlora_studio.engine.objectives.protocol import Objective, RowLosses

Scale = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class StepSums:
    """A step's loss and metrics, divided by the objective's divisor; still on the device."""

    loss: torch.Tensor
    """Scalar, fp32."""
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StepRows:
    """The rows of one step, and the seed of its dropout."""

    rows: tuple[int, ...]
    step: int


class Accumulator:
    """Gradients of steps over one set of examples, whatever memory is left."""

    def __init__(
        self,
        objective: Objective,
        loss_function: LossFunction,
        examples: Sequence[Example],
        ladder: MemoryLadder,
        seed: int,
    ) -> None:
        self.objective = objective
        self.loss_function = loss_function
        self.examples = examples
        self.ladder = ladder
        self.seed = seed
        self.device = loss_function.head.device
        self.layout = loss_function.layout
        self.lengths = token_lengths(examples)
        self.row_seeds = find_row_seeds(loss_function.model)
        self.changed: torch.Tensor | None = None
        """Whether an offloaded tensor of the last step came back another; on its device."""

    def add_gradients(self, step: StepRows, scale: Scale = lambda loss: loss) -> StepSums:
        """Adds the gradient of the step's loss to the parameters, whose gradients are empty before.

        `scale` is applied to what goes backward, not to what is returned. Raises a StudioError where the longest row
        alone does not fit.
        """
        add = self._add_coupled if self.objective.couples_rows else self._add
        longest = max(self.lengths[row] for row in step.rows)
        sums = self.ladder.until_it_fits(lambda limits: add(step, scale, limits), longest)
        return self._without_changed(sums)

    def refuse_changed(self) -> None:
        """Raises a StudioError where the last step was computed from an offloaded tensor that came back another."""
        if self.changed is not None and bool(self.changed):
            raise StudioError(
                "What was offloaded to the computer's memory came back changed. The step was not applied.",
                "Resume the run. If it comes again, start one with offload none or embeddings, and have the memory tested.",
                field="memory.offload",
            )

    def _without_changed(self, sums: StepSums) -> StepSums:
        """The sums, with a loss that is no number where an offloaded tensor came back another: no such step is applied."""
        offloading = self.ladder.offloading
        self.changed = None if offloading is None else offloading.take_changed()
        if self.changed is None:
            return sums
        return replace(sums, loss=sums.loss.masked_fill(self.changed, math.nan))

    def _add(self, step: StepRows, scale: Scale, limits: Limits) -> StepSums:
        """One pass: micro-batches are summed as they come."""
        divisor = self._divisor(step)
        total = torch.zeros((), dtype=torch.float32, device=self.device)
        metrics: dict[str, torch.Tensor] = {}
        for places in self.layout.cut(step.rows, self.lengths, limits.micro_batch_tokens):
            part = self.objective.loss(self._pair_up(step, places, self._row_losses(step, places)))
            loss = part.summed / divisor
            scale(loss).backward()
            total += loss.detach()
            for name, value in part.metrics.items():
                metrics[name] = metrics.get(name, torch.zeros_like(total)) + value.detach() / divisor
        return StepSums(total, metrics)

    def _add_coupled(self, step: StepRows, scale: Scale, limits: Limits) -> StepSums:
        """Two passes: the losses of the whole step, then each row weighed by the derivative of the step's loss.

        The chain rule over one number a row, so rows of a unit may stand in different micro-batches.
        """
        groups = self.layout.cut(step.rows, self.lengths, limits.micro_batch_tokens)
        losses = torch.empty(len(step.rows), dtype=torch.float32, device=self.device)
        with torch.no_grad():
            for places in groups:
                losses[places] = self._row_losses(step, places)
        losses.requires_grad_()
        divisor = self._divisor(step)
        whole = self.objective.loss(self._pair_up(step, range(len(step.rows)), losses))
        loss = whole.summed / divisor
        (weights,) = torch.autograd.grad(loss, losses)
        for places in groups:
            scale((self._row_losses(step, places) * weights[places]).sum()).backward()
        return StepSums(loss.detach(), {name: value.detach() / divisor for name, value in whole.metrics.items()})

    def _divisor(self, step: StepRows) -> float:
        return self.objective.divisor([self.examples[row] for row in step.rows])

    def _row_losses(self, step: StepRows, places: Sequence[int]) -> torch.Tensor:
        """The losses of the rows at these places of the step, as one micro-batch; (places,)."""
        batch = self.layout.collate(self.examples, [step.rows[place] for place in places])
        if self.row_seeds is not None:
            self.row_seeds.set(self.seed, step.step, batch)
        return self.loss_function.row_losses(batch)

    def _pair_up(self, step: StepRows, places: Sequence[int], losses: torch.Tensor) -> RowLosses:
        rows = tuple(step.rows[place] for place in places)
        tokens = [float(self.examples[row].trained_tokens) for row in rows]
        return RowLosses(rows, losses, torch.tensor(tokens, device=self.device))
