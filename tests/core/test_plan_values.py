"""What a plan, a shape and a card are taken to be where nothing is said of them."""

from __future__ import annotations

from qlora_studio.core.plan import (
    GpuInfo,
    GpuProcess,
    LinearShape,
    MeasuredShape,
    MemoryEstimate,
    MemoryPart,
    MemoryPlan,
    ModelShape,
    Moment,
    PlanSettings,
    StackedShape,
    StepCosts,
)
from tests.core.frozen import stays

SIZES = {
    "name": "m", "family": "llama", "hidden": 8, "layers": 2, "intermediate": 16, "heads": 2, "kv_heads": 1,
    "head_dim": 4, "vocab": 32, "tied_embeddings": True, "max_positions": 64,
}  # fmt: skip
PLANNED = {
    "device": "cuda", "budget_bytes": 10, "estimate": MemoryEstimate(parts=()), "micro_batch_tokens": 1,
    "checkpointed_layers": 0, "layers": 1, "adapter_precision": "fp32", "optimizer": "adamw",
}  # fmt: skip
END = Moment(1.0)
COSTS = {
    "boundary": 1, "saved": 1, "saved_fixed": 1, "first_saved_less": 1, "around": 1, "ending": 1, "layer": (), "end": END,
}  # fmt: skip


def test_a_shape_of_which_only_sizes_are_known_is_a_plain_one():
    assert ModelShape(**SIZES).model_dump(exclude=set(SIZES)) == {
        "qk_norm": False, "attention_bias": False, "output_bias": False, "mlp_bias": False, "sliding_window": None,
        "sliding_layers": 0, "whole_logits": False, "rotary_dim": None, "exact": True, "config_hash": "", "measured": None,
    }  # fmt: skip
    layer = LinearShape("q_proj", 3, 5, 2)
    assert (layer.bias, layer.four_bit, layer.transposed, layer.path, layer.weights) == (False, True, False, "", 15)
    assert StackedShape("experts", 10, 2).active == 1.0
    measured = MeasuredShape(linears=(), other_bytes=0, costs={}, rank=8)
    assert (measured.stacked, measured.padded_because, measured.eager, measured.tiled) == ((), None, False, {})


def test_a_moment_needs_what_is_said_of_it_and_no_more():
    moment = Moment(per_token=1.0)
    assert moment == Moment(1.0, 0, 0.0, 0.0, False, 0.0, 0.0, False)
    costs = StepCosts(**COSTS)
    assert (costs.forward, costs.saved_pairs, costs.around_pairs) == (None, 0.0, 0.0)


def test_a_step_is_planned_for_a_card_in_bf16_at_rank_16():
    assert PlanSettings().model_dump() == {
        "device": "cuda", "compute": "bf16", "rank": 16, "dropout": False, "dora": False, "adapted": (),
        "adapted_layers": None, "micro_batch_tokens": 2048, "row_tokens": None, "packed": False, "cut_by_row": False,
        "trained_tokens": None, "checkpointed_layers": 0, "adapter_precision": "fp32", "optimizer": "adamw_8bit",
        "offload": "none", "tiled_mlp": False, "repeats_kv": False, "correction": 1.0,
    }  # fmt: skip
    sizes = [(one.compute_bytes, one.adapter_bytes) for one in (
        PlanSettings(), PlanSettings(compute="fp16", adapter_precision="bf16"), PlanSettings(compute="fp32"),
    )]  # fmt: skip
    assert sizes == [(2, 4), (2, 2), (4, 4)]


def test_a_plan_offloads_nothing_unasked():
    assert MemoryPlan(**PLANNED).model_dump(exclude=set(PLANNED)) == {
        "offload": "none", "tiled_mlp": False, "host_bytes": 0, "host_budget_bytes": None, "settings": None,
        "reasons": (), "changes": (), "longest_context": None, "largest_rank": None,
    }  # fmt: skip


def test_what_is_missing_is_missing_on_the_card_or_beside_it():
    parts = tuple(MemoryPart(key=key, label=key, bytes=size) for key, size in (("weights", 6), ("context", 4)))
    plan = MemoryPlan(**PLANNED | {"estimate": MemoryEstimate(parts=parts)})
    assert (plan.fits, plan.missing_bytes, plan.spare_bytes) == (True, 0, 0)
    assert (plan.comparable_bytes, plan.comparable_budget_bytes) == (6, 6), "a card does not count CUDA's context"
    processor = plan.model_copy(update={"device": "cpu"})
    assert (processor.comparable_bytes, processor.comparable_budget_bytes) == (10, 10)
    small = plan.model_copy(update={"budget_bytes": 7})
    assert (small.fits, small.missing_bytes, small.spare_bytes) == (False, 3, -3)
    hosts = {"host_bytes": 9, "host_budget_bytes": 4}
    assert plan.model_copy(update=hosts).missing_bytes == small.model_copy(update=hosts).missing_bytes == 5
    assert plan.model_copy(update=hosts | {"host_budget_bytes": 9}).fits
    assert plan.model_copy(update=hosts | {"host_budget_bytes": None}).fits, "nobody says how much there may be"


def test_what_was_planned_stays():
    card = GpuInfo(index=0, name="card", total_bytes=8, free_bytes=7)
    shape = ModelShape(**SIZES)
    values = (card, GpuProcess(pid=1, name="x"), shape, PlanSettings(), MemoryPlan(**PLANNED), MemoryEstimate(parts=()))
    assert all(map(stays, values))
    assert card.model_dump(exclude={"index", "name", "total_bytes", "free_bytes"}) == {
        "uuid": "", "driver": "", "compute_capability": None, "temperature_c": None, "power_watts": None,
        "utilisation_percent": None, "peak_flops": None, "bandwidth": None, "processes": (),
    }  # fmt: skip
