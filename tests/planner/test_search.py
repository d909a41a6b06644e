"""The search among settings: what it finds by halving is what trying every count finds."""

from dataclasses import replace

import pytest

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.plan import GIB, PlanSettings
from qlora_studio.planner import search
from qlora_studio.planner.estimate import host_bytes, total_bytes
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES
from qlora_studio.planner.search import (
    LARGEST_RANK,
    NEVER,
    Situation,
    adapter_choices,
    can_fit,
    checkpoint_choices,
    choose_settings,
    find_largest_rank,
    find_longest_context,
    fits_checkpointed,
    least_checkpointing,
    micro_batch_choices,
    offload_choices,
    settings_for,
    smallest_bytes,
    smallest_settings,
    step_time,
    takes,
    tile_choices,
)
from tests.planner.test_families import COSTS, TINY, measured

NAMES = ("SmolLM2-135M", "Gemma-3-4B", "Phi-4-mini", "Llama-3.1-8B")


def situations():
    for name in NAMES:
        for device, compute in (("cuda", "bf16"), ("cpu", "fp32")):
            for row in (1, 700, 9000):
                start = Situation(REFERENCE_SHAPES[name], TrainConfig(), device, compute, 8 * GIB, row)
                yield start
                yield replace(start, host_budget_bytes=GIB // 8, cut_by_row=True)
                yield replace(start, host_budget_bytes=0)


def test_the_count_of_checkpointed_layers_that_takes_least_is_found_without_trying_them_all():
    compared, inside = 0, 0
    for situation in situations():
        for offload in offload_choices(situation):
            for tiled in tile_choices(situation):
                layers = checkpoint_choices(situation)
                row = situation.longest_row
                every = [settings_for(situation, row, one, "fp32", offload, tiled_mlp=tiled) for one in layers]
                least = min(every, key=lambda settings: takes(situation, settings))
                found = least_checkpointing(situation, row, "fp32", offload, tiled_mlp=tiled)
                assert found == least
                compared += 1
                inside += 1 < least.checkpointed_layers < situation.shape.layers
    assert compared > 150 and inside > 10


@pytest.mark.parametrize("choice", ["none", "half", "full"])
def test_a_count_that_was_chosen_is_the_one_there_is(choice):
    config = TrainConfig().replace({"memory.gradient_checkpointing": choice})
    situation = Situation(REFERENCE_SHAPES["Llama-3.2-1B"], config, "cuda", "bf16", 8 * GIB, 512)
    (layers,) = checkpoint_choices(situation)
    assert least_checkpointing(situation, 512, "bf16", "none", tiled_mlp=False).checkpointed_layers == layers


@pytest.mark.parametrize(
    ("name", "budget_gib", "host_gib", "whole_layers"),
    [
        ("Llama-3.2-3B", 5, 4, True),  # memory of the computer is short: layers that offload nothing take less
        ("Qwen3-4B", 4, 1, True),
        ("Llama-3.1-8B", 8, 64, False),
        ("SmolLM2-135M", 4, 64, False),
        ("Gemma-3-4B", 1, 64, False),
    ],
)
def test_the_longest_context_and_the_largest_rank_are_the_last_for_which_any_settings_fit(
    name, budget_gib, host_gib, whole_layers
):
    shape, host = REFERENCE_SHAPES[name], host_gib * GIB
    start = Situation(shape, TrainConfig(), "cuda", "bf16", budget_gib * GIB, 100, host_budget_bytes=host)
    context, rank = find_longest_context(start), find_largest_rank(start)
    for found, most, situation_with in (
        (context, shape.max_positions, lambda number: replace(start, longest_row=number)),
        (rank, LARGEST_RANK, lambda number: replace(start, config=start.config.replace({"lora.rank": number}))),
    ):
        assert can_fit(situation_with(1)) == (found is not None)
        assert found is None or can_fit(situation_with(found))
        assert found in (None, most) or not can_fit(situation_with(found + 1))
    assert whole_layers == (context is not None and not fits_checkpointed(replace(start, longest_row=context)))


EIGHT = REFERENCE_SHAPES["Llama-3.1-8B"]


def situation(row=512, shape=EIGHT, device="cuda", compute="bf16", **changes):
    values = {name.replace("__", "."): value for name, value in changes.items()}
    return Situation(shape, TrainConfig().replace({"data.max_length": 64} | values), device, compute, 8 * GIB, row)


def test_a_situation_knows_nothing_special_unless_it_is_told():
    plain = situation()
    assert (plain.correction, plain.repeats_kv, plain.cut_by_row, plain.host_budget_bytes) == (
        1.0,
        False,
        False,
        1 << 62,
    )


def test_settings_are_the_choices_and_what_the_situation_fixes():
    told = replace(
        situation(300, lora__rank=24, lora__dropout=0.1, lora__use_dora=True, optim__optimizer="adamw"),
        compute="fp16", correction=1.25, repeats_kv=True, cut_by_row=True,
    )  # fmt: skip
    assert settings_for(told, 700, 5, "bf16", "both", tiled_mlp=True) == PlanSettings(
        device="cuda", compute="fp16", rank=24, dropout=True, dora=True, adapted=(), adapted_layers=None,
        micro_batch_tokens=700, row_tokens=300, packed=True, cut_by_row=True, checkpointed_layers=5,
        adapter_precision="bf16", optimizer="adamw", correction=1.25, repeats_kv=True, offload="both", tiled_mlp=True,
    )  # fmt: skip
    plain = settings_for(situation(lora__target_modules="q_proj, v_proj", lora__layers="0-9"), 512, 0, "fp32")
    assert (plain.adapted, plain.adapted_layers) == (("q_proj", "v_proj"), 10)
    assert (plain.dropout, plain.dora, plain.offload, plain.tiled_mlp) == (False, False, "none", False)
    assert settings_for(situation(lora__rank=8, lora__init="pissa"), 512, 0, "fp32").rank == 16


@pytest.mark.parametrize(
    ("row", "changes", "choices"),
    [
        (512, {}, [512, 768, 1024, 1536, 2048, 3072, 4096]),
        (500, {"optim__batch_tokens": 1024}, [500, 512, 768, 1024]),
        (512, {"optim__batch_tokens": 512}, [512]),
        (512, {"optim__batch_tokens": 300}, [512]),
        (3000, {"optim__batch_tokens": 100_000}, [3000, 3072, 4096]),
        (5000, {"optim__batch_tokens": 100_000}, [5000]),
        (512, {"memory__micro_batch_tokens": 700}, [700]),
        (512, {"memory__micro_batch_tokens": 300}, [512]),
    ],
)
def test_micro_batches_go_from_the_longest_row_to_the_effective_batch(row, changes, choices):
    assert micro_batch_choices(situation(row, **({"optim__batch_tokens": 8192} | changes))) == choices


def test_a_processor_has_smaller_micro_batches_and_one_memory():
    there = situation(512, device="cpu", optim__batch_tokens=8192)
    assert micro_batch_choices(there) == [512, 768, 1024] and offload_choices(there) == ("none",)
    assert offload_choices(situation(device="cpu", memory__offload="both")) == ("none",)


def test_what_may_be_tried_is_what_a_person_left_open():
    assert adapter_choices(situation()) == ("fp32", "bf16")
    assert adapter_choices(situation(compute="fp16")) == ("fp32",)
    assert adapter_choices(situation(memory__adapter_precision="bf16")) == ("bf16",)
    assert offload_choices(situation()) == ("none", "embeddings", "boundaries", "both")
    assert offload_choices(situation(shape=REFERENCE_SHAPES["Qwen3-4B"])) == ("none", "boundaries")
    assert offload_choices(situation(memory__offload="embeddings")) == ("embeddings",)
    assert list(checkpoint_choices(situation())) == list(range(33))
    odd = EIGHT.model_copy(update={"layers": 7})
    for choice, layers in (("none", 0), ("half", 4), ("full", 7)):
        assert list(checkpoint_choices(situation(shape=odd, memory__gradient_checkpointing=choice))) == [layers]


@pytest.mark.parametrize(
    ("row", "changes", "tiles"),
    [
        (1024, {}, (False,)), (1025, {}, (False, True)), (9000, {"lora__dropout": 0.1}, (False,)),
        (9000, {"lora__use_dora": True}, (False,)),
    ],
)  # fmt: skip
def test_tiles_are_tried_for_rows_of_more_than_one_where_the_kernel_is_used(row, changes, tiles):
    assert tile_choices(situation(row, **changes)) == tiles


def test_a_measured_family_is_tried_in_tiles_in_the_formats_that_its_dry_run_had():
    for measured_in, compute, tiles in (
        ("bf16", "bf16", (False, True)), ("bf16", "fp16", (False, True)), ("bf16", "fp32", (False,)),
        ("fp32", "fp32", (False, True)), ("fp32", "bf16", (False,)),
    ):  # fmt: skip
        shape = measured(tiled={measured_in: COSTS})
        assert tile_choices(situation(2000, shape=shape, compute=compute)) == tiles


def test_the_time_of_a_token_is_that_of_what_is_computed_again_and_of_dequantising():
    weights = 3 * 528
    whole = PlanSettings(micro_batch_tokens=155, checkpointed_layers=3)
    assert step_time(whole, TINY) == pytest.approx((1 + (weights - 3 * 96) / weights / 2) * 2)
    part = PlanSettings(micro_batch_tokens=310, checkpointed_layers=1)
    assert step_time(part, TINY) == pytest.approx((1 + (weights - 3 * 96) / weights / 6) * 1.5)
    assert step_time(PlanSettings(micro_batch_tokens=1550), TINY) == pytest.approx(1.1)


def test_the_fastest_that_fits_is_chosen_and_what_a_result_feels_goes_last(monkeypatch):
    """Of what fits to the byte: everything on the card, then tiles, then what waits outside, then bf16."""
    start = situation(2000, optim__batch_tokens=4096)
    fits = {}
    monkeypatch.setattr(search, "takes", lambda there, one: 8 * GIB + (0 if fits["what"](one) else 1))
    order = [
        lambda one: one.adapter_precision == "bf16",
        lambda one: one.offload == "both" and one.tiled_mlp,
        lambda one: one.offload == "embeddings",
        lambda one: one.tiled_mlp and one.offload == "none",
    ]
    found = []
    for number in range(1, len(order) + 1):
        fits["what"] = lambda one, number=number: any(able(one) for able in order[:number])
        one = choose_settings(start)
        found.append((one.adapter_precision, one.offload, one.tiled_mlp))
        assert (one.micro_batch_tokens, one.checkpointed_layers) == (4096, 0)
    assert found == [
        ("bf16", "none", False), ("fp32", "both", True), ("fp32", "embeddings", False), ("fp32", "none", True),
    ]  # fmt: skip
    fits["what"] = lambda one: False
    assert choose_settings(start) is None
    fits["what"] = lambda one: (
        one.checkpointed_layers >= 20 or (one.micro_batch_tokens, one.checkpointed_layers) == (2048, 3)
    )
    one = choose_settings(start)
    assert (one.micro_batch_tokens, one.checkpointed_layers) == (2048, 3), "less is computed twice"


def test_what_offloads_more_than_the_computer_can_take_fits_no_card():
    start = situation(memory__offload="boundaries")
    settings = settings_for(start, 512, 8, "fp32", "boundaries")
    need = host_bytes(EIGHT, settings)
    plain = total_bytes(EIGHT, settings)
    assert need == 8 * 512 * 4096 * 2 and takes(replace(start, host_budget_bytes=need), settings) == plain
    assert takes(replace(start, host_budget_bytes=need - 1), settings) == plain + NEVER
    inside = settings_for(start, 512, 8, "fp32", "none")
    assert takes(replace(start, host_budget_bytes=-1), inside) == total_bytes(EIGHT, inside)


def test_it_can_fit_to_the_byte():
    start = situation(shape=REFERENCE_SHAPES["SmolLM2-135M"])
    least = smallest_bytes(start)
    assert least == takes(start, smallest_settings(start))
    assert can_fit(replace(start, budget_bytes=least)) and not can_fit(replace(start, budget_bytes=least - 1))
    settings = smallest_settings(start)
    assert (settings.micro_batch_tokens, settings.adapter_precision) == (512, "bf16")


@pytest.mark.parametrize("last", [0, 1, 2, 7, 8, 9, 500, 1023, 1024])
def test_the_largest_number_that_fits_is_found_wherever_it_lies(last):
    asked = []

    def fits(number):
        asked.append(number)
        return number <= last

    assert search._largest(fits, 0, 1024) == last
    assert len(asked) <= 11 and all(1 <= number <= 1024 for number in asked)
    assert search._largest(fits, last, last) == last


@pytest.mark.parametrize(
    ("mostly", "really"), [(0, 0), (0, 1), (0, 5), (3, 3), (3, 4), (3, 30), (99, 100), (100, 100), (50, 71), (0, 100)]
)
def test_settings_that_mostly_take_least_are_asked_first_and_not_believed(monkeypatch, mostly, really):
    monkeypatch.setattr(search, "fits_checkpointed", lambda number: number <= mostly)
    monkeypatch.setattr(search, "can_fit", lambda number: number <= really)
    assert search._find_largest(lambda number: number, 100) == (really or None)


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5, 11])
def test_the_lowest_point_is_found_wherever_it_lies(monkeypatch, layers):
    """Also where more than so many layers would offload more than the computer can take."""
    start = situation(shape=EIGHT.model_copy(update={"layers": layers}))
    for lowest in range(layers + 1):
        for most in range(layers + 1):
            asked = []

            def takes(there, one, lowest=lowest, most=most, asked=asked):
                asked.append(one.checkpointed_layers)
                over = NEVER if one.checkpointed_layers > most else 0
                return abs(one.checkpointed_layers - lowest) + over

            monkeypatch.setattr(search, "takes", takes)
            found = least_checkpointing(start, 512, "fp32", "boundaries", tiled_mlp=False)
            assert found.checkpointed_layers == min(lowest, most)
            assert len(asked) == len(set(asked)), "nothing is asked twice"
