"""Static sizes against the published table, and the bill's own sums."""

from dataclasses import replace

import pytest

from qlora_studio.core.plan import MIB, LinearShape, PlanSettings, StackedShape
from qlora_studio.planner.estimate import (
    estimate,
    fixed_bytes,
    host_bytes,
    nf4_bytes,
    nf4_matrix_bytes,
    optimizer_bytes,
    total_bytes,
    unquantised_bytes,
)
from qlora_studio.planner.families import count_adapter_weights, list_linears
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES
from tests.planner.test_families import COSTS, TINY, measured

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


@pytest.mark.parametrize(
    ("weights", "size"),
    [
        (1, 1 + 1 + 4 + 1092), (64, 32 + 1 + 4 + 1092), (65, 33 + 2 + 4 + 1092), (16_384, 8192 + 256 + 4 + 1092),
        (16_385, 8193 + 257 + 8 + 1092),
    ],
)  # fmt: skip
def test_a_matrix_in_four_bits_is_its_halves_its_scales_their_scales_and_two_tables(weights, size):
    assert nf4_matrix_bytes(weights) == size


def test_only_what_is_quantised_is_counted_in_four_bits():
    assert nf4_bytes(TINY) == 3 * sum(nf4_matrix_bytes(linear.weights) for linear in list_linears(TINY))
    some = (LinearShape("a", 8, 4, 3), LinearShape("b", 8, 8, 5, four_bit=False))
    assert nf4_bytes(measured(linears=some)) == 3 * nf4_matrix_bytes(32)


@pytest.mark.parametrize(
    ("changes", "settings", "numbers"),
    [
        ({}, {}, 160 + 56),
        ({"tied_embeddings": False}, {}, 320 + 56),
        ({"tied_embeddings": False}, {"offload": "embeddings"}, 160 + 56),
        ({"tied_embeddings": False}, {"offload": "both"}, 160 + 56),
        ({"tied_embeddings": False}, {"offload": "boundaries"}, 320 + 56),
        ({}, {"offload": "both"}, 160 + 56),
        ({"mlp_bias": True}, {}, 160 + 56 + 96),
        ({"family": "gemma3_text"}, {}, 160 + 3 * 4 * 8 + 8 + 1),
    ],
    ids=str,
)
def test_embeddings_norms_and_biases_stay_in_the_compute_format(changes, settings, numbers):
    shape = TINY.model_copy(update=changes)
    rotary = 2 * 4 * 2  # cosines and sines of half of 5 numbers, in fp32
    for compute, size in (("bf16", 2), ("fp16", 2), ("fp32", 4)):
        assert unquantised_bytes(shape, PlanSettings(compute=compute, **settings)) == size * numbers + rotary
    partly = shape.model_copy(update={"rotary_dim": 2})
    assert unquantised_bytes(partly, PlanSettings(**settings)) == 2 * numbers + 2 * 4


def test_gemma_has_a_second_table_of_positions_for_its_local_layers():
    gemma = TINY.model_copy(update={"family": "gemma3_text"})
    local = gemma.model_copy(update={"sliding_layers": 2})
    assert unquantised_bytes(local, PlanSettings()) - unquantised_bytes(gemma, PlanSettings()) == 2 * 4 * 2


def test_the_rest_of_a_measured_model_is_what_the_dry_run_found():
    shape = measured(other_bytes=1001)
    assert unquantised_bytes(shape, PlanSettings()) == 1001
    assert unquantised_bytes(shape, PlanSettings(compute="fp32")) == 2002
    assert unquantised_bytes(shape, PlanSettings(offload="embeddings")) == 1001, "tied ones stay"
    untied = shape.model_copy(update={"tied_embeddings": False})
    assert unquantised_bytes(untied, PlanSettings(offload="embeddings")) == 1001 - 2 * 160


def test_what_waits_in_the_computers_memory_is_counted_there():
    untied = TINY.model_copy(update={"tied_embeddings": False})
    taken = {
        offload: host_bytes(untied, PlanSettings(offload=offload, micro_batch_tokens=100, checkpointed_layers=2))
        for offload in ("none", "embeddings", "boundaries", "both")
    }
    inputs = 2 * 100 * 8 * 2  # layers x tokens x width x bytes
    assert taken == {"none": 0, "embeddings": 320, "boundaries": inputs, "both": 320 + inputs}
    assert host_bytes(TINY, PlanSettings(offload="embeddings", compute="fp32")) == 0
    assert host_bytes(untied, PlanSettings(offload="embeddings", compute="fp32")) == 640
    found = measured(costs={"bf16": replace(COSTS, boundary=3.5), "fp32": replace(COSTS, boundary=7.0)})
    step = PlanSettings(offload="boundaries", micro_batch_tokens=3, checkpointed_layers=1)
    assert host_bytes(found, step) == round(10.5)
    assert host_bytes(found, step.model_copy(update={"compute": "fp32"})) == 21


def test_optimizer_states_are_counted_tensor_by_tensor():
    """Of a layer of 8 x 40 and one of 4,096 x 1; small tensors keep their states in 32 bits."""
    linears = (LinearShape("a", 8, 40, 3), LinearShape("b", 4096, 1, 2))
    shape = measured(linears=linears)
    numbers = 3 * (8 + 40) + 2 * (4096 + 1)
    for precision, size in (("fp32", 4), ("bf16", 2)):
        plain = PlanSettings(rank=1, optimizer="adamw", adapter_precision=precision)
        assert optimizer_bytes(shape, plain) == 2 * size * numbers + 4 * 2 * (3 + 2)
        small = 3 * (8 + 40) + 2 * 1
        blocks = PlanSettings(rank=1, optimizer="adamw_8bit", adapter_precision=precision)
        assert optimizer_bytes(shape, blocks) == 2 * 256 * 4 + 2 * 4 * small + 2 * (2 * (4096 + 4 * 16))
    just_below = measured(linears=(LinearShape("b", 4095, 1, 1),))
    assert optimizer_bytes(just_below, PlanSettings(rank=1, optimizer="adamw_8bit")) == 2048 + 2 * 4 * 4096
    uneven = measured(linears=(LinearShape("b", 4097, 1, 1),))
    assert optimizer_bytes(uneven, PlanSettings(rank=1, optimizer="adamw_8bit")) == 2048 + 8 + 2 * (4097 + 4 * 17)


def test_what_is_exact_is_weights_adapter_gradients_and_states():
    settings = PlanSettings(rank=2, optimizer="adamw", adapter_precision="bf16")
    adapter = 3 * 2 * 122
    states = 2 * 2 * adapter + 4 * 2 * 7 * 3
    weights = nf4_bytes(TINY) + 2 * 216 + 16
    assert fixed_bytes(TINY, settings) == weights + 2 * 2 * adapter + states


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("correction", [1.0, 1.3])
@pytest.mark.parametrize("trained", [None, 1], ids=["at the loss", "in a layer"])
def test_searches_add_up_what_the_bill_lists(device, correction, trained):
    shape = REFERENCE_SHAPES["Qwen3-4B"]
    settings = PlanSettings(device=device, correction=correction, packed=True, checkpointed_layers=7, row_tokens=300)
    settings = settings.model_copy(update={"trained_tokens": trained})
    bill = estimate(shape, settings)
    in_a_layer = trained == 1 and device == "cuda"  # on a processor the loss is filled up, and still the worst
    assert bool(bill.part_bytes("workspace")) == in_a_layer != bool(bill.part_bytes("loss"))
    assert total_bytes(shape, settings) == bill.total_bytes
    listed = {part.key: part.bytes for part in bill.parts}
    context, slack = {"cuda": (560 * MIB, 0.03), "cpu": (960 * MIB, 0.3)}[device]
    rest = sum(size for key, size in listed.items() if key not in ("context", "slack"))
    assert (listed["context"], listed["slack"]) == (context, round(slack * rest))


def words(shape, **settings):
    return {part.key: (part.label, part.basis) for part in estimate(shape, PlanSettings(**settings)).parts}


def test_every_item_of_the_bill_says_what_it_is():
    said = words(
        REFERENCE_SHAPES["Llama-3.1-8B"], rank=16, micro_batch_tokens=700, checkpointed_layers=3, correction=1.25,
    )  # fmt: skip
    assert said == {
        "weights_4bit": ("Weights, 4 bit", "224 linear layers in NF4 with double quantisation"),
        "weights_16bit": ("Weights, 16 bit", "Embedding, output head and norms"),
        "adapter": ("Adapter", "41.9 million numbers at rank 16 in fp32"),
        "gradients": ("Gradients", "As large as the adapter"),
        "optimizer": ("Optimizer", "Both moments of adamw_8bit"),
        "activations": (
            "Activations",
            "Micro-batch of 700 tokens, gradient checkpointing on 3 of 32 layers, times 1.25 as measured on this machine",
        ),
        "loss": ("Loss", said["loss"][1]),
        "workspace": ("Workspace", said["workspace"][1]),
        "context": ("Context", "CUDA context, kernels and libraries"),
        "slack": ("Slack", "What the allocator cannot hand out again"),
    }
    other = words(TINY, device="cpu", compute="fp32", micro_batch_tokens=64)
    assert other["weights_16bit"] == ("Weights, 32 bit", "Embedding and output head in one and norms")
    assert other["activations"] == ("Activations", "Micro-batch of 64 tokens, no gradient checkpointing")
    assert other["context"] == ("Context", "The process and its libraries")


def test_what_stays_in_16_bit_is_listed():
    odd = (LinearShape("a", 8, 4, 3), LinearShape("b", 8, 8, 3, four_bit=False))
    stacked = (StackedShape("experts", 100, 3),)
    assert words(measured(linears=odd, stacked=stacked))["weights_16bit"][1] == (
        "Embedding and output head in one, experts, linear layers of a kind of their own and norms"
    )
    assert words(measured())["weights_4bit"][1] == "6 linear layers in NF4 with double quantisation"


def test_the_loss_and_a_matrix_are_said_to_be_there_only_where_they_are_at_the_worst_moment():
    llama, nothing = REFERENCE_SHAPES["Llama-3.2-1B"], "Not there at the worst moment"
    chunk = "Logits over 128256 words of vocabulary, a chunk at a time"
    plain = words(llama, micro_batch_tokens=4096)
    assert (plain["loss"], plain["workspace"]) == (("Loss", chunk), ("Workspace", nothing))
    layers = words(llama, micro_batch_tokens=4096, checkpointed_layers=16)
    assert (layers["loss"][1], layers["workspace"][1]) == (nothing, "A weight matrix, dequantised")
    whole = llama.model_copy(update={"whole_logits": True})
    assert words(whole, micro_batch_tokens=4096)["loss"][1] == chunk.replace("a chunk", "all")
