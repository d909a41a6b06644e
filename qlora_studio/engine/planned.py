"""What the figures of a plan mean to an allocator, which counts tensors and not the process around them."""

from __future__ import annotations

from qlora_studio.core.plan import MemoryPlan


def tensor_budget_bytes(plan: MemoryPlan) -> int:
    """What is left of the budget for tensors when the context has taken its part."""
    return plan.budget_bytes - plan.estimate.part_bytes("context")
