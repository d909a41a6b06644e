"""Single moments of a step, added up by hand for SmolLM2-135M."""

import pytest

from qlora_studio.core.plan import PlanSettings
from qlora_studio.planner.activations import StepPeak, _attention_bytes, step_peak
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES

SMOL = REFERENCE_SHAPES["SmolLM2-135M"]
HIDDEN, INNER, QUERIES, KEYS = 576, 1536, 576, 192
NORM = 2 * HIDDEN + 4
SAVED = 2 * NORM + 2 * 2 * HIDDEN + 2 * (2 * QUERIES + 2 * KEYS) + 4 * 9 + 2 * 16 * 7 + 2 * 2 * INNER
"""Of a layer and token in bf16 at rank 16: norms, attention, low-rank products, the gated MLP."""
COPIES = 2 * 16 * (2 * (HIDDEN + QUERIES) + 2 * (HIDDEN + KEYS))
"""Of a layer's adapter on attention, which is fp32 itself."""
AROUND = 2 * 2 * 64 + 16


@pytest.mark.parametrize("checkpointed", [0, 1, 15])
def test_where_hardly_a_token_is_trained_the_last_mlp_is_the_worst_moment(checkpointed):
    """Its result, the last matrix and blocks of the inner width, on top of all that is kept on the way forward."""
    tokens = 64
    kept = (30 - checkpointed) * (SAVED * tokens + COPIES) + (checkpointed * 2 * HIDDEN + AROUND) * tokens
    matrix, blocks = 2 * HIDDEN * INNER, 2 * 2 * INNER * tokens
    settings = PlanSettings(micro_batch_tokens=tokens, checkpointed_layers=checkpointed, trained_tokens=1)
    assert step_peak(SMOL, settings) == StepPeak(kept + 2 * HIDDEN * tokens, 0, matrix + blocks)


def attention(row, micro=None, **settings):
    return _attention_bytes(SMOL, PlanSettings(row_tokens=row, micro_batch_tokens=micro or row, **settings))


def test_a_cards_attention_has_queries_in_fp32_and_keys_and_values_for_every_head():
    assert attention(100) == (4 + 2 * 2) * QUERIES * 100
    assert attention(100, compute="fp32") == (4 + 2 * 4) * QUERIES * 100
    assert attention(100, packed=True) == (4 + 2 * 2) * QUERIES * 128, "packed they are filled up"


@pytest.mark.parametrize(
    ("row", "block", "width"), [(100, 32, 100), (191, 32, 191), (192, 64, 192), (767, 64, 512), (768, 256, 512)]
)
def test_a_processors_attention_goes_in_blocks_that_grow_with_the_row(row, block, width):
    assert attention(row, device="cpu", compute="fp32") == round(2 * 18.7 * block * width)
    assert attention(row, device="cpu") == round(2 * 14.7 * block * width)


@pytest.mark.parametrize(
    ("row", "micro", "size"),
    [
        (64, 64, 12 * 9 * 64 * 64 + 12 * KEYS * 64),
        (40, 65, 12 * 9 * 64 * 64 + 12 * KEYS * 64 + 2 * (QUERIES + 2 * KEYS) * 40 + 2 * QUERIES * 40),
        (65, 65, 18 * 9 * 64 * 128 + 12 * KEYS * 128 + 2 * QUERIES * 65),
        (512, 513, 18 * 9 * 64 * 512 + 12 * KEYS * 512 + 2 * (QUERIES + 2 * KEYS) * 512),
        (513, 513, round(2 * 14.7 * 64 * 512) + 2 * QUERIES * 513),
    ],
)  # fmt: skip
def test_short_rows_that_are_packed_go_by_products_of_blocks_of_queries(row, micro, size):
    """Scores of one block or two, keys and values of the row; beside other rows its gradients, and what is filled up."""
    assert attention(row, micro, device="cpu", packed=True) == size
