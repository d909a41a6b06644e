"""The out-of-memory ladder: the same work again under smaller limits, until it fits.

No rung changes what is computed beyond rounding: micro-batches are halved first, which costs little time, then gradient
checkpointing covers more layers, and last MLPs go in tiles, where a row is longer than one. Training and evaluation go
down the same ladder and stay where they came to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import nn

from qlora_studio.core.errors import StudioError
from qlora_studio.core.plan import GIB, MemoryPlan
from qlora_studio.engine.accelerator.protocol import Accelerator
from qlora_studio.engine.kernels.checkpointing import checkpoint_layers
from qlora_studio.engine.kernels.gated_mlp import TILE
from qlora_studio.engine.kernels.offloading import Offloading
from qlora_studio.engine.kernels.replace import can_tile, tile_mlps
from qlora_studio.engine.oom import is_out_of_memory
from qlora_studio.faults import fault

CHECKPOINTING_RUNGS = 4
"""In how many rungs the ladder goes from gradient checkpointing on no layer to all."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a step is computed at once, and how much of it is kept for the backward pass."""

    micro_batch_tokens: int
    checkpointed_layers: int
    layers: int
    tiled_mlp: bool = False
    """Whether MLPs are computed in tiles."""
    can_tile: bool = False
    """Whether they could be."""

    def smaller_of(self, other: Limits) -> Limits:
        """The smaller of both in each respect."""
        return replace(
            self,
            micro_batch_tokens=min(self.micro_batch_tokens, other.micro_batch_tokens),
            checkpointed_layers=min(self.layers, max(self.checkpointed_layers, other.checkpointed_layers)),
            tiled_mlp=self.tiled_mlp or (self.can_tile and other.tiled_mlp),
        )


@dataclass(frozen=True, slots=True)
class Descent:
    """One rung down."""

    limits: Limits
    change: str
    """What was made smaller, in words."""
    reason: str
    """The first line of the error that asked for it."""


def smaller_limits(limits: Limits, longest: int, *, backward: bool = True) -> tuple[Limits, str] | None:
    """The next smaller limits and what was changed, in words; None where nothing is left to make smaller.

    `longest` is the longest row in tokens: it is computed in one piece. Without `backward` gradient checkpointing and
    tiles would save nothing and are no rungs.
    """
    if limits.micro_batch_tokens > longest:
        tokens = max(longest, limits.micro_batch_tokens // 2)
        words = f"a micro-batch of {tokens} instead of {limits.micro_batch_tokens} tokens"
        return replace(limits, micro_batch_tokens=tokens), words
    if backward and limits.checkpointed_layers < limits.layers:
        more = max(1, -(-limits.layers // CHECKPOINTING_RUNGS))
        layers = min(limits.layers, limits.checkpointed_layers + more)
        words = f"gradient checkpointing on {layers} instead of {limits.checkpointed_layers} of {limits.layers} layers"
        return replace(limits, checkpointed_layers=layers), words
    if backward and limits.can_tile and not limits.tiled_mlp and longest > TILE:
        return replace(limits, tiled_mlp=True), f"MLPs in tiles of {TILE} tokens"
    return None


def planned_limits(plan: MemoryPlan, model: nn.Module) -> Limits:
    """The limits that a plan begins with, for the model that will be computed."""
    return Limits(
        plan.micro_batch_tokens, plan.checkpointed_layers, plan.layers, plan.tiled_mlp, can_tile=can_tile(model)
    )


class MemoryLadder:
    """The limits in force for a model, and the way down when memory runs out."""

    def __init__(
        self,
        model: nn.Module,
        accelerator: Accelerator,
        limits: Limits,
        report: Callable[[Descent], None] = lambda descent: None,
        *,
        offload: bool = False,
    ) -> None:
        self.model = model
        self.accelerator = accelerator
        self.report = report
        self.offloading = Offloading(accelerator) if offload else None
        self.set_limits(limits)

    def set_limits(self, limits: Limits) -> None:
        """Puts limits in force."""
        self.limits = limits
        checkpoint_layers(self.model, limits.checkpointed_layers, self.offloading)
        tile_mlps(self.model, limits.tiled_mlp)

    def until_it_fits(self, work: Callable[[Limits], Result], longest: int, *, backward: bool = True) -> Result:
        """What `work` gives under the largest limits that it fits in; `longest` is its longest row in tokens.

        Before each try gradients are gone and the random state is what it was before the first. Raises a StudioError
        where even the longest row alone does not fit; after any error the random state is as before.
        """
        states = self.accelerator.random_state()
        while True:
            try:
                fault("ladder")
                return work(self.limits)
            except Exception as error:
                self.accelerator.set_random_state(states)
                if not is_out_of_memory(error):
                    raise
                reason = (str(error) or type(error).__name__).splitlines()[0]
            # Outside the handler, so that the failed frames and what they hold are gone before trying again.
            self.model.zero_grad(set_to_none=True)
            self.accelerator.release()
            self._descend(longest, reason, backward)

    def _descend(self, longest: int, reason: str, backward: bool) -> None:
        found = smaller_limits(self.limits, longest, backward=backward)
        if found is None:
            raise StudioError(
                f"One row of {longest} tokens does not fit: "
                f"{self.accelerator.peak().allocated_bytes / GIB:.2f} GiB were in use when memory ran out.",
                "Lower the max sequence length or the rank, or choose a smaller base.",
            )
        limits, change = found
        self.set_limits(limits)
        self.report(Descent(limits, change, reason))
