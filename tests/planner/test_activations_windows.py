"""Masks of local layers: where a window is reached, and where there is none to reach."""

import pytest

from qlora_studio.core.plan import PlanSettings
from qlora_studio.planner.activations import step_peak
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES

GEMMA = REFERENCE_SHAPES["Gemma-3-4B"]
STEPS = [
    PlanSettings(row_tokens=2000, micro_batch_tokens=4000, checkpointed_layers=layers, **more)
    for layers in (0, 3, 34)
    for more in ({}, {"packed": True}, {"packed": True, "cut_by_row": True}, {"packed": True, "device": "cpu"})
]


@pytest.mark.parametrize("settings", STEPS, ids=range(len(STEPS)))
def test_a_window_that_no_layer_has_and_layers_without_a_window_cost_nothing(settings):
    none = GEMMA.model_copy(update={"sliding_window": None, "sliding_layers": 0})
    plain = step_peak(none, settings)
    assert step_peak(none.model_copy(update={"sliding_window": 1024}), settings) == plain
    layers = none.model_copy(update={"sliding_layers": 29})
    tokens = 4032 if settings.packed else 4000  # packed they are filled up
    assert step_peak(layers, settings).total - plain.total == 2 * 2 * 256 * tokens, "their own positions alone"


@pytest.mark.parametrize(("packed", "at_the_window"), [(True, False), (False, True)])
def test_packed_rows_need_a_mask_beyond_the_window_and_padded_ones_from_it_on(packed, at_the_window):
    def masked(row):
        settings = PlanSettings(row_tokens=row, micro_batch_tokens=4096, packed=packed, cut_by_row=True)
        far = GEMMA.model_copy(update={"sliding_window": 1 << 20})
        return step_peak(GEMMA, settings).total - step_peak(far, settings).total

    a_layer = 2 * (4096 * 1024 + 2 * 4 * 256 * 4096)  # the mask, and keys and values for four heads more
    assert (masked(1023), masked(1024)) == (0, 29 * a_layer if at_the_window else 0) and masked(1025) >= 29 * a_layer
