"""What the figures of a plan mean to an allocator, which counts tensors and not the process around them."""

from __future__ import annotations

from qlora_studio.core.plan import MemoryPlan
from qlora_studio.engine.accelerator.protocol import Accelerator


def tensor_budget_bytes(plan: MemoryPlan) -> int:
    """What is left of the budget for tensors when the context has taken its part."""
    return plan.budget_bytes - plan.estimate.part_bytes("context")


def comparable_bytes(plan: MemoryPlan, accelerator: Accelerator) -> int:
    """What the plan says of the quantity that the accelerator's peak of reserved memory measures.

    Reserved memory is what the cap counts, so it is what is compared and learned from.
    """
    return plan.estimate.total_bytes if accelerator.peak_counts_process else plan.estimate.reserved_bytes
