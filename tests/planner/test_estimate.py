"""Static sizes against the published table, and the bill's own sums."""

import pytest

from qlora_studio.core.plan import MIB, PlanSettings
from qlora_studio.planner.estimate import estimate, nf4_bytes, total_bytes
from qlora_studio.planner.families import count_adapter_weights, list_linears
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES

# performance notes 3.2: P_lin in billions, NF4 with double quantisation in MiB, largest matrix in millions,
# adapter weights at rank 16 in millions; written down from the real modules on the meta device.
STATIC = {
    "SmolLM2-135M": (0.106, 52.5, 0.9, 4.88),
    "Llama-3.2-1B": (0.973, 478.8, 16.8, 11.3),
    "Qwen3-1.7B": (1.409, 693.5, 12.6, 17.4),
    "Llama-3.2-3B": (2.819, 1386.9, 25.2, 24.3),
    "Phi-4-mini": (3.221, 1584.9, 50.3, 23.1),
    "Gemma-3-4B": (3.209, 1578.8, 26.2, 29.8),
    "Qwen3-4B": (3.633, 1787.7, 24.9, 33.0),
    "Mistral-7B-v0.3": (6.979, 3433.9, 58.7, 41.9),
    "Llama-3.1-8B": (6.979, 3433.9, 58.7, 41.9),
    "Qwen3-8B": (6.946, 3417.4, 50.3, 43.6),
    "Gemma-3-12B": (10.758, 5293.2, 59.0, 65.5),
    "Qwen3-14B": (13.212, 6500.2, 89.1, 64.2),
}


@pytest.mark.parametrize("name", STATIC)
def test_static_sizes_are_those_of_the_real_modules(name):
    shape = REFERENCE_SHAPES[name]
    linears = list_linears(shape)
    found = (
        round(sum(linear.weights * linear.count for linear in linears) / 1e9, 3),
        round(nf4_bytes(shape) / MIB, 1),
        round(max(linear.weights for linear in linears) / 1e6, 1),
        pytest.approx(count_adapter_weights(shape, 16) / 1e6, abs=0.051),
    )
    assert found == STATIC[name]


def test_the_bill_has_every_item_and_adds_up():
    bill = estimate(REFERENCE_SHAPES["Llama-3.1-8B"], PlanSettings())
    keys = [part.key for part in bill.parts]
    assert keys == [
        "weights_4bit", "weights_16bit", "adapter", "gradients", "optimizer",
        "activations", "loss", "workspace", "context", "slack",
    ]  # fmt: skip
    assert all(part.label and part.basis for part in bill.parts)
    assert (
        bill.total_bytes
        == sum(part.bytes for part in bill.parts)
        == total_bytes(REFERENCE_SHAPES["Llama-3.1-8B"], PlanSettings())
    )


def test_a_correction_moves_what_was_calculated_and_nothing_that_is_exact():
    shape = REFERENCE_SHAPES["Qwen3-4B"]
    plain, larger = estimate(shape, PlanSettings()), estimate(shape, PlanSettings(correction=1.5))
    for key in ("weights_4bit", "weights_16bit", "adapter", "gradients", "optimizer", "context"):
        assert larger.part_bytes(key) == plain.part_bytes(key)
    for key in ("activations", "workspace"):
        assert larger.part_bytes(key) == pytest.approx(1.5 * plain.part_bytes(key), abs=1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_optimizer_states_follow_format_and_kind(precision, optimizer):
    shape = REFERENCE_SHAPES["Llama-3.1-8B"]
    weights = count_adapter_weights(shape, 16)
    found = estimate(shape, PlanSettings(adapter_precision=precision, optimizer=optimizer)).part_bytes("optimizer")
    wanted = {"adamw": {"fp32": 8, "bf16": 4}, "adamw_8bit": {"fp32": 2.03, "bf16": 2.03}}[optimizer][precision]
    assert found / weights == pytest.approx(wanted, abs=0.01)


def test_what_waits_in_the_computer_s_memory_leaves_the_bill():
    shape = REFERENCE_SHAPES["Llama-3.1-8B"]
    step = PlanSettings(micro_batch_tokens=4096, checkpointed_layers=32)
    plain = estimate(shape, step)
    both = estimate(shape, step.model_copy(update={"offload": "both"}))
    assert plain.part_bytes("weights_16bit") - both.part_bytes("weights_16bit") == 2 * 128256 * 4096
    assert plain.part_bytes("activations") - both.part_bytes("activations") == 31 * 2 * 4096 * 4096
