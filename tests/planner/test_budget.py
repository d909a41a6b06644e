"""The budget with its reason, and what a card of each generation computes in."""

import pytest

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.machine import Machine
from qlora_studio.core.plan import GIB
from qlora_studio.planner.budget import choose_compute, cut_by_row, find_budget, find_host_budget, repeats_kv
from qlora_studio.planner.estimate import CONTEXT_BYTES
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES
from qlora_studio.planner.tables import imagine_machine

SMOL, GEMMA = REFERENCE_SHAPES["SmolLM2-135M"], REFERENCE_SHAPES["Gemma-3-4B"]
PROCESSOR = Machine(memory_bytes=32 * GIB, memory_available_bytes=20 * GIB, cores=8, cpu_bf16=True)
OLD = PROCESSOR.model_copy(update={"cpu_bf16": False})


def card(capability, free=10 * GIB):
    there = imagine_machine(12)
    one = there.cards[0].model_copy(update={"compute_capability": capability, "free_bytes": free})
    return there.model_copy(update={"cards": (one,)})


def config(**changes):
    return TrainConfig().replace({name.replace("__", "."): value for name, value in changes.items()})


@pytest.mark.parametrize(
    ("machine", "changes", "budget", "reason"),
    [
        (PROCESSOR, {}, 14, "Budget 14.00 GiB: 70% of this computer's available memory."),
        (card(None), {}, 10, "Budget 10.00 GiB: what is free on a 12 GB card."),
        (card(None), {"memory__budget_gib": 10.0}, 10, "Budget 10.00 GiB: your setting."),
        (card(None), {"memory__budget_gib": 6.5}, 6.5, "Budget 6.50 GiB: your setting."),
        (card(None), {"memory__budget_gib": 11.0}, 10, "Budget 10.00 GiB instead of 11 GiB: what is free on a 12 GB card."),
        (
            card(None), {"memory__budget_gib": 6.5, "memory__keep_free_gib": 0.5}, 6,
            "Budget 6.50 GiB: your setting, less 512 MiB kept free: 6.00 GiB.",
        ),
    ],
)  # fmt: skip
def test_a_budget_and_why(machine, changes, budget, reason):
    assert find_budget(config(**changes), machine) == (budget * GIB, reason)


def test_a_budget_of_no_more_than_cudas_context_is_refused():
    context = CONTEXT_BYTES["cuda"]
    assert find_budget(config(), card(None, free=context + 1))[0] == context + 1
    with pytest.raises(StudioError, match="CUDA's own context takes"):
        find_budget(config(), card(None, free=context))
    with pytest.raises(StudioError, match="The budget is 0 MiB"):
        find_budget(config(memory__keep_free_gib=20.0), card(None))
    assert find_budget(config(memory__keep_free_gib=20.0), PROCESSOR)[0] == 0


def test_offloading_may_take_half_of_what_is_available():
    assert find_host_budget(PROCESSOR) == 10 * GIB


@pytest.mark.parametrize(
    ("machine", "shape", "compute"),
    [
        (PROCESSOR, SMOL, "bf16"), (OLD, SMOL, "fp32"), (card((7, 5)), SMOL, "fp16"), (card((7, 5)), GEMMA, "fp32"),
        (card((8, 0)), GEMMA, "bf16"), (card((8, 9)), SMOL, "bf16"), (card(None), SMOL, "bf16"),
    ],
)  # fmt: skip
def test_the_format_that_the_hardware_has(machine, shape, compute):
    assert choose_compute(config(), shape, machine) == compute
    assert choose_compute(config(model__compute_dtype="fp32"), shape, machine) == "fp32"


@pytest.mark.parametrize(
    ("machine", "shape", "changes", "field"),
    [
        (PROCESSOR, SMOL, {}, "model.compute_dtype"),
        (card((8, 6)), GEMMA, {}, "model.compute_dtype"),
        (card((8, 6)), SMOL, {"memory__adapter_precision": "bf16"}, "memory.adapter_precision"),
    ],
)
def test_fp16_is_refused_where_it_cannot_train(machine, shape, changes, field):
    with pytest.raises(StudioError) as caught:
        choose_compute(config(model__compute_dtype="fp16", **changes), shape, machine)
    assert caught.value.problems[0].field == field
    assert choose_compute(config(model__compute_dtype="fp16"), SMOL, card((8, 6))) == "fp16"


@pytest.mark.parametrize(
    ("capability", "compute", "head_dim", "cut"),
    [
        ((8, 0), "bf16", 64, False), ((8, 0), "fp16", 256, False), ((7, 5), "fp16", 64, True), (None, "bf16", 64, False),
        ((8, 0), "fp32", 64, True), ((8, 0), "bf16", 264, True), ((8, 0), "bf16", 60, True),
    ],
)  # fmt: skip
def test_flash_cuts_rows_itself_from_ampere_on_in_16_bits_with_heads_it_knows(capability, compute, head_dim, cut):
    shape = SMOL.model_copy(update={"head_dim": head_dim})
    assert cut_by_row(shape, card(capability), compute) == cut
    assert not cut_by_row(shape, PROCESSOR, compute)


@pytest.mark.parametrize(
    ("capability", "compute", "repeats"),
    [((8, 0), "bf16", False), (None, "bf16", False), ((7, 5), "fp16", True), ((8, 0), "fp32", True)],
)
def test_keys_and_values_are_repeated_where_flash_is_not(capability, compute, repeats):
    alike = SMOL.model_copy(update={"kv_heads": SMOL.heads})
    assert repeats_kv(SMOL, card(capability), compute) == repeats
    assert not repeats_kv(alike, card(capability), compute) and not repeats_kv(SMOL, PROCESSOR, compute)
