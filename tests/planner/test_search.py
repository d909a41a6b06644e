"""The search among settings: what it finds by halving is what trying every count finds."""

from dataclasses import replace

import pytest

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.plan import GIB
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES
from qlora_studio.planner.search import (
    Situation,
    checkpoint_choices,
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
