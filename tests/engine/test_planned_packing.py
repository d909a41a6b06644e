"""Why a plan pads rows, from a model's config alone."""

from __future__ import annotations

import pytest

from qlora_studio.engine import planned_packing
from qlora_studio.engine.planned_packing import find_padding
from qlora_studio.engine.stand_ins import shorten, without_numbers
from tests.engine.architectures import config_of

REASONS = {
    "llama": None,
    "gemma3_text": None,
    "gptj": "its attention has no fused kernel that could be cut by row",
    "lfm2": "it has layers that are not cut by row (conv)",
    "gpt2": "it leaves something out at random by itself",
    "falcon": "its layers cannot be told where rows end (TypeError)",
}


@pytest.mark.parametrize("family", REASONS)
def test_a_plan_packs_rows_or_says_why_not(family):
    with without_numbers():
        assert find_padding(config_of(family)) == REASONS[family]


@pytest.mark.parametrize(("layers", "tried"), [(2, 2), (4, 4), (9, 4)])
def test_no_more_than_four_layers_are_tried(monkeypatch, layers, tried):
    asked = []
    monkeypatch.setattr(planned_packing, "shorten", lambda config, count: asked.append(count) or shorten(config, count))
    config = config_of("llama")
    config.num_hidden_layers = layers
    with without_numbers():
        assert find_padding(config) is None
    assert asked == [tried]


def test_a_layer_that_does_not_say_its_window_makes_rows_be_padded(monkeypatch):
    def refuse(config, windows):
        assert windows == [None] * 4
        raise ValueError("0 of 4 local layers said their window")

    monkeypatch.setattr(planned_packing, "check_windows", refuse)
    with without_numbers():
        assert find_padding(config_of("llama")) == "its layers cannot be told where rows end (ValueError)"
