"""What a layer keeps for its backward pass, number by number: small parts that a tolerance of five percent hides."""

import pytest

from qlora_studio.core.plan import PlanSettings
from qlora_studio.planner.activations import step_costs
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES

LLAMA, QWEN = REFERENCE_SHAPES["Llama-3.2-1B"], REFERENCE_SHAPES["Qwen3-4B"]


def saved(shape, **settings):
    return step_costs(shape, PlanSettings(device="cuda", compute="bf16", rank=16, packed=True, **settings)).saved


def test_norms_of_queries_and_keys_keep_their_inputs_and_a_number_a_head():
    plain = QWEN.model_copy(update={"qk_norm": False})
    inputs = 2 * (QWEN.heads + QWEN.kv_heads) * QWEN.head_dim
    assert saved(QWEN) - saved(plain) == inputs + 4 * (QWEN.heads + QWEN.kv_heads)


def test_a_plain_layer_keeps_what_its_products_and_norms_take():
    shape, e = LLAMA, 2
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    norms = 2 * (e * shape.hidden + 4)  # the input of each and its scale
    into_adapters = 2 * e * shape.hidden  # what attention and the MLP are fed
    attention = e * (queries + keys + keys) + e * queries + 4 * shape.heads  # q, k, v, the output, a sum a head
    low_rank = e * 16 * 7
    gated = 2 * e * shape.intermediate
    assert saved(shape) == norms + into_adapters + attention + low_rank + gated


def test_tiles_keep_nothing_of_the_mlp_and_repeated_heads_all_of_theirs():
    shape = LLAMA
    assert saved(shape) - saved(shape, tiled_mlp=True) == 2 * 2 * shape.intermediate + 2 * 16 * 3
    repeated = 2 * 2 * (shape.heads - shape.kv_heads) * shape.head_dim
    assert saved(shape, repeats_kv=True) - saved(shape) == repeated


@pytest.mark.parametrize("rank", [1, 16, 100])
def test_every_adapted_layer_keeps_its_low_rank_product(rank):
    costs = step_costs(LLAMA, PlanSettings(device="cuda", compute="fp16", rank=rank, packed=True))
    more = step_costs(LLAMA, PlanSettings(device="cuda", compute="fp16", rank=rank + 1, packed=True))
    assert more.saved - costs.saved == 2 * 7


def test_chosen_modules_of_chosen_layers_keep_theirs_alone():
    chosen = saved(LLAMA, adapted=("q_proj", "v_proj"), adapted_layers=LLAMA.layers // 2)
    assert saved(LLAMA) - chosen == 2 * 16 * (7 - 1)
