"""How much memory a run may take, and in which number format it computes, with the reason in words."""

from __future__ import annotations

from typing import Literal

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.machine import Machine
from qlora_studio.core.plan import GIB, ModelShape
from qlora_studio.core.words import gib
from qlora_studio.planner.estimate import CONTEXT_BYTES

CPU_SHARE = 0.7
"""Share of the available memory that a run on the CPU may take; the rest is for everything else that runs."""
OFFLOAD_SHARE = 0.5
"""Share of the available memory that offloading may take: much of it is pinned, and cannot be swapped out."""
BF16_CAPABILITY = (8, 0)
"""Ampere: the first cards with bf16, and with flash attention."""
OVERFLOWING = ("gemma3",)
"""Families whose activations overflow in fp16 (transformers issue 36822)."""


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


def find_host_budget(machine: Machine) -> int:
    """Bytes of the computer's memory that offloading may take; the system needs the rest."""
    return round(machine.memory_available_bytes * OFFLOAD_SHARE)


def choose_compute(config: TrainConfig, shape: ModelShape, machine: Machine) -> Literal["bf16", "fp16", "fp32"]:
    """The number format of the arithmetic: bf16 where the hardware has it, else fp16 on a card and fp32 on a CPU.

    Raises a StudioError where the format asked for cannot train this model.
    """
    compute = _wanted_format(config, shape, machine)
    if compute != "fp16":
        return compute
    if machine.card is None:
        raise StudioError(
            "This computer has no card, and fp16 is not for processors.",
            "Choose bf16, fp32 or auto.",
            field="model.compute_dtype",
        )
    if _overflows(shape):
        raise StudioError(
            f"A {shape.family} model overflows in fp16.", "Choose bf16, fp32 or auto.", field="model.compute_dtype"
        )
    if config.memory.adapter_precision == "bf16":
        raise StudioError(
            "An adapter in bf16 cannot be trained in fp16: its scaled gradients have no kernel.",
            "Choose fp32 or auto.",
            field="memory.adapter_precision",
        )
    return compute


def _wanted_format(config: TrainConfig, shape: ModelShape, machine: Machine) -> Literal["bf16", "fp16", "fp32"]:
    if config.model.compute_dtype != "auto":
        return config.model.compute_dtype
    if machine.card is None:
        return "bf16" if machine.cpu_bf16 else "fp32"
    if (machine.card.compute_capability or BF16_CAPABILITY) >= BF16_CAPABILITY:
        return "bf16"
    return "fp32" if _overflows(shape) else "fp16"


def _overflows(shape: ModelShape) -> bool:
    return shape.family.startswith(OVERFLOWING)


def cut_by_row(shape: ModelShape, machine: Machine, compute: str) -> bool:
    """Whether packed attention is one kernel a row on this card: flash cuts rows itself from Ampere on, in 16 bits.

    The rule of `engine.accelerator.attention.has_varlen`.
    """
    card = machine.card
    if card is None:
        return False
    cuttable = compute != "fp32" and shape.head_dim <= 256 and shape.head_dim % 8 == 0
    return not cuttable or (card.compute_capability or BF16_CAPABILITY) < BF16_CAPABILITY


def repeats_kv(shape: ModelShape, machine: Machine, compute: str) -> bool:
    """Whether keys and values are repeated for every head: torch's grouped queries want flash.

    Flash wants Ampere and 16 bits; without it `enable_gqa` falls to the kernel that holds a number for every pair of
    tokens (transformers issue 48633).
    """
    card = machine.card
    if card is None or shape.heads == shape.kv_heads:
        return False
    return compute == "fp32" or (card.compute_capability or BF16_CAPABILITY) < BF16_CAPABILITY
