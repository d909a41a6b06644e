"""A plan's figures beside an allocator's."""

from __future__ import annotations

from qlora_studio.core.plan import MemoryEstimate, MemoryPart
from qlora_studio.engine.planned import tensor_budget_bytes
from tests.engine.conftest import make_plan

PARTS = {"weights_4bit": 1000, "activations": 300, "context": 70, "slack": 20}
PLAN = make_plan(200).model_copy(
    update={
        "budget_bytes": 5000,
        "estimate": MemoryEstimate(
            parts=tuple(MemoryPart(key=key, label=key, bytes=size) for key, size in PARTS.items())
        ),
    }
)


def test_tensors_may_take_what_the_context_leaves_of_the_budget():
    assert tensor_budget_bytes(PLAN) == 5000 - 70
