"""The search among settings: what it finds by halving is what trying every count finds."""

from dataclasses import replace

import pytest

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.plan import GIB
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES
from qlora_studio.planner.search import (
    LARGEST_RANK,
    Situation,
    can_fit,
    checkpoint_choices,
    find_largest_rank,
    find_longest_context,
    fits_checkpointed,
    least_checkpointing,
    offload_choices,
    settings_for,
    takes,
    tile_choices,
)

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
