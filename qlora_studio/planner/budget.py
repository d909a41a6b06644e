"""How much memory a run may take, and in which number format it computes, with the reason in words."""

from __future__ import annotations

from typing import Literal

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.machine import Machine
from qlora_studio.core.plan import GIB
from qlora_studio.core.words import gib
from qlora_studio.planner.estimate import CONTEXT_BYTES

CPU_SHARE = 0.7
"""Share of the available memory that a run on the CPU may take; the rest is for everything else that runs."""


def find_budget(config: TrainConfig, machine: Machine) -> tuple[int, str]:
    """Bytes the run may take of the card, or of the computer's memory where there is none, and why so many.

    Raises a StudioError where a card's budget is less than CUDA takes before there is any tensor: no plan could fit.
    """
    wanted, keep = config.memory.budget_gib, round(config.memory.keep_free_gib * GIB)
    card = machine.card
    if card is None:
        there = round(machine.memory_available_bytes * CPU_SHARE)
        whose = f"{CPU_SHARE:.0%} of this computer's available memory"
    else:
        there, whose = card.free_bytes, f"what is free on {card.name}"
    budget, reason = there, f"Budget {gib(there)}: {whose}."
    if wanted is not None and wanted * GIB <= there:
        budget, reason = round(wanted * GIB), f"Budget {gib(round(wanted * GIB))}: your setting."
    elif wanted is not None:
        reason = f"Budget {gib(there)} instead of {wanted:g} GiB: {whose}."
    if keep:
        budget = max(0, budget - keep)
        reason = f"{reason[:-1]}, less {gib(keep)} kept free: {gib(budget)}."
    _refuse_less_than_a_context(budget, machine)
    return budget, reason


def _refuse_less_than_a_context(budget: int, machine: Machine) -> None:
    """What CUDA takes for itself is outside the allocator's cap, so a budget below it leaves a cap below zero."""
    if machine.card is None or budget > CONTEXT_BYTES["cuda"]:
        return
    raise StudioError(
        f"The budget is {gib(budget)}, and CUDA's own context takes {gib(CONTEXT_BYTES['cuda'])} before there is "
        "any model.",
        "Raise the budget, keep less free, or close other programs.",
        field="memory.budget_gib",
    )


def choose_compute(config: TrainConfig, machine: Machine) -> Literal["bf16", "fp16", "fp32"]:
    """The number format of the arithmetic: bf16 where the hardware has it, else fp16 on a card and fp32 on a CPU."""
    if config.model.compute_dtype != "auto":
        return config.model.compute_dtype
    if machine.card is not None:
        return "fp16" if (machine.card.compute_capability or (8, 0)) < (8, 0) else "bf16"
    return "bf16" if machine.cpu_bf16 else "fp32"
