"""The moments of a step worked out on paper, for a model of four layers with round costs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qlora_studio.core.plan import MeasuredShape, ModelShape, Moment, PlanSettings, StepCosts
from qlora_studio.planner import activations
from qlora_studio.planner.activations import StepPeak, loss_bytes, step_costs, step_peak
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES

SHAPE = ModelShape(
    name="small", family="llama", hidden=8, layers=4, intermediate=16, heads=2, kv_heads=1, head_dim=4, vocab=10,
    tied_embeddings=True, max_positions=512,
)  # fmt: skip
LOCAL = SHAPE.model_copy(update={"sliding_layers": 2, "sliding_window": 5})
COSTS = StepCosts(
    boundary=1, saved=10, saved_fixed=100, first_saved_less=3, around=5, ending=7, layer=(Moment(20),), end=Moment(0),
    saved_pairs=2, around_pairs=0.5,
)  # fmt: skip
TWO_ROWS = {"micro_batch_tokens": 10, "row_tokens": 5}
"""50 pairs of tokens. A layer keeps 10 · 10 + 100 + 2 · 50 = 300; around the layers lie 5 · 10 + 0.5 · 50 = 75."""


def peak(monkeypatch, shape=SHAPE, costs=COSTS, loss=0, **settings) -> StepPeak:
    monkeypatch.setattr(activations, "step_costs", lambda *_: costs)
    monkeypatch.setattr(activations, "loss_bytes", lambda *_: loss)
    return step_peak(shape, PlanSettings(**TWO_ROWS | settings))


@pytest.mark.parametrize(
    ("settings", "held"),
    [
        ({}, 75 + 4 * 300 - 30 + 200),
        ({"checkpointed_layers": 1}, 75 + 10 + 3 * 300 + 200),
        ({"checkpointed_layers": 2}, 75 + 20 + 2 * 300 + 200),
        ({"checkpointed_layers": 4}, 75 + 40 + (300 - 10) + 200),
        ({"checkpointed_layers": 4, "offload": "boundaries"}, 75 + 10 + (300 - 10) + 200),
        ({"checkpointed_layers": 4, "offload": "both"}, 75 + 10 + (300 - 10) + 200),
        ({"checkpointed_layers": 4, "offload": "embeddings"}, 75 + 40 + (300 - 10) + 200),
        ({"offload": "boundaries"}, 75 + 4 * 300 - 30 + 200),
    ],
    ids=str,
)
def test_a_layer_goes_backward_while_those_before_it_are_still_kept(settings, held, monkeypatch):
    assert peak(monkeypatch, **settings) == StepPeak(held, 0, 0)


def test_of_one_layer_that_is_computed_again_the_first_keeps_less(monkeypatch):
    one = SHAPE.model_copy(update={"layers": 1})
    assert peak(monkeypatch, one, checkpointed_layers=1).activations == 75 + 10 + (300 - 10 - 30) + 200
    assert peak(monkeypatch, one).activations == 75 + 300 - 30 + 200


def test_local_layers_keep_their_masks_and_what_is_repeated(monkeypatch):
    window = 2 * (50 + 2 * (2 - 1) * 4 * 10)  # 16 bit: a mask of two rows, and keys and values for the second head
    assert peak(monkeypatch, LOCAL).activations == 75 + 4 * 300 + 2 * window - 30 + 200
    shared = 5 * 5
    assert peak(monkeypatch, LOCAL, checkpointed_layers=4).activations == 75 + 40 + shared + 290 + window + 200
    half = peak(monkeypatch, LOCAL, checkpointed_layers=2).activations
    assert half == 75 + 20 + shared + 2 * 300 + 1 * window + 200


def test_what_follows_the_layers_and_the_way_forward_may_be_the_worst(monkeypatch):
    kept = 75 + 4 * 300 - 30
    assert peak(monkeypatch, loss=5000) == StepPeak(kept + 70, 5000, 0)
    assert peak(monkeypatch, costs=replace(COSTS, end=Moment(100))) == StepPeak(kept + 70 + 1000, 0, 0)
    forward = replace(COSTS, forward=Moment(50))
    assert peak(monkeypatch, costs=forward) == StepPeak(kept + 30 + 500, 0, 0)  # the embedding is held on to
    assert peak(monkeypatch, costs=forward, checkpointed_layers=2).activations == 75 + 20 + 600 + 500
    assert peak(monkeypatch, costs=forward, checkpointed_layers=4).activations == 75 + 40 + 290 + 200


def test_a_moment_may_need_bytes_for_pairs_and_fixed_ones_and_a_line_below_zero_is_no_workspace(monkeypatch):
    kept = 75 + 4 * 300 - 30
    moment = Moment(20, fixed=1000, per_pair=3)
    assert peak(monkeypatch, costs=replace(COSTS, layer=(moment,))) == StepPeak(kept + 200 + 150, 0, 1000)
    below = Moment(200, fixed=-40)
    assert peak(monkeypatch, costs=replace(COSTS, layer=(below,))) == StepPeak(kept + 2000 - 40, 0, 0)


@pytest.mark.parametrize(("eager", "margin"), [(False, 1.0), (True, 1.15)])
def test_where_attention_has_no_fused_kernel_a_measured_peak_gets_a_margin(eager, margin, monkeypatch):
    measured = MeasuredShape(linears=(), other_bytes=0, eager=eager, rank=16, costs={"bf16": COSTS})
    shape = SHAPE.model_copy(update={"measured": measured})
    found = peak(monkeypatch, shape, replace(COSTS, layer=(Moment(20, fixed=1000),)), loss=0)
    assert found == StepPeak(round(margin * (75 + 1200 - 30 + 200)), 0, round(margin * 1000))
    loss = peak(monkeypatch, shape, loss=5000)
    assert loss == StepPeak(round(margin * (75 + 1200 - 30 + 70)), round(margin * 5000), 0)


NORM, PLAIN = Moment(0, norm_width=8, norm_fused=True), Moment(0, norm_width=8)


@pytest.mark.parametrize(
    ("moment", "device", "tokens", "workspace"),
    [
        (NORM, "cuda", 10, 0),
        (NORM, "cpu", 10, 12 * 80),
        (PLAIN, "cuda", 10, 12 * 80),
        (PLAIN, "cpu", 200_000, 12 * (1 << 20)),
        (PLAIN, "cuda", 1_000_000, 12 * (1 << 22)),
        (Moment(0, inner_width=16), "cuda", 10, 2 * 2 * 16 * 10),
        (Moment(0, inner_width=16), "cuda", 3000, 2 * 2 * 16 * 1024),
        (Moment(0, inner_width=16), "cpu", 3000, 2 * 2 * 16 * 256),
        (Moment(0, tile_width=16), "cpu", 10, 2 * 2 * 16 * 10),
        (Moment(0, tile_width=16), "cpu", 3000, 2 * 2 * 16 * 1024),
        (Moment(0, inner_width=16, tile_width=8, norm_width=8), "cuda", 10, 2 * 2 * (16 + 8) * 10 + 12 * 80),
        (Moment(0, attention=True), "cuda", 10, (4 + 2 * 2) * 8 * 10),
        (Moment(0, attention=True, inner_width=16), "cuda", 10, 8 * 8 * 10 + 2 * 2 * 16 * 10),
    ],
    ids=str,
)
def test_kernels_that_work_in_blocks_hold_one_block(moment, device, tokens, workspace, monkeypatch):
    costs = replace(COSTS, layer=(), end=replace(moment, per_token=1))
    found = peak(monkeypatch, costs=costs, device=device, micro_batch_tokens=tokens, row_tokens=None)
    assert found.workspace == workspace


@pytest.mark.parametrize(
    ("settings", "scratch"),
    [
        ({"row": 100}, round(2 * (10.7 + 4) * 32 * 100)),
        ({"row": 191}, round(2 * (10.7 + 4) * 32 * 191)),
        ({"row": 192}, round(2 * (10.7 + 4) * 64 * 192)),
        ({"row": 767}, round(2 * (10.7 + 4) * 64 * 512)),
        ({"row": 768}, round(2 * (10.7 + 4) * 256 * 512)),
        ({"row": 100, "compute": "fp32"}, round(2 * (10.7 + 8) * 32 * 100)),
    ],
    ids=str,
)
def test_attention_on_a_processor_holds_blocks_of_scores(settings, scratch):
    given = dict(settings)
    row = given.pop("row")
    found = activations._attention_bytes(SHAPE, PlanSettings(device="cpu", micro_batch_tokens=row, **given))
    assert found == scratch


@pytest.mark.parametrize(
    ("row", "tokens", "held"),
    [
        (40, 40, 12 * 2 * 64 * 64 + 12 * 4 * 64 + 2 * 8 * 40),
        (64, 64, 12 * 2 * 64 * 64 + 12 * 4 * 64),
        (65, 65, 18 * 2 * 64 * 128 + 12 * 4 * 128 + 2 * 8 * 65),
        (128, 128, 18 * 2 * 64 * 128 + 12 * 4 * 128),
        (128, 256, 18 * 2 * 64 * 128 + 12 * 4 * 128 + 2 * (8 + 2 * 4) * 128),
        (512, 512, 18 * 2 * 64 * 512 + 12 * 4 * 512),
        (576, 576, round(2 * (10.7 + 4) * 64 * 512)),
    ],
)
def test_packed_on_a_processor_short_rows_go_backward_by_blocks_of_queries(row, tokens, held):
    settings = PlanSettings(device="cpu", packed=True, row_tokens=row, micro_batch_tokens=tokens)
    assert activations._attention_bytes(SHAPE, settings) == held


def test_packed_on_a_processor_in_fp32_torch_does_it_and_a_mask_is_counted_where_a_window_needs_one():
    settings = PlanSettings(device="cpu", packed=True, row_tokens=128, micro_batch_tokens=256, compute="fp32")
    plain = round(2 * (10.7 + 8) * 32 * 128) + 4 * (8 + 2 * 4) * 128
    assert activations._attention_bytes(SHAPE, settings) == plain
    assert activations._attention_bytes(LOCAL, settings) == plain + 4 * 128 * 128
    bf16 = settings.model_copy(update={"compute": "bf16"})
    masked = round(2 * (10.7 + 4) * 32 * 128) + 2 * (8 + 2 * 4) * 128 + 2 * 128 * 128
    assert activations._attention_bytes(LOCAL, bf16) == masked


@pytest.mark.parametrize(
    ("shape", "settings", "pairs"),
    [
        (SHAPE, {"row_tokens": 5}, 0),
        (LOCAL, {"row_tokens": 4}, 0),
        (LOCAL, {"row_tokens": 5}, 100),
        (LOCAL, {"row_tokens": 5, "packed": True}, 0),
        (LOCAL, {"row_tokens": 6, "packed": True}, 120),
        (LOCAL.model_copy(update={"sliding_window": None}), {"row_tokens": 6}, 0),
        (LOCAL.model_copy(update={"sliding_layers": 0}), {"row_tokens": 6}, 0),
        (LOCAL, {}, 400),
    ],
    ids=str,
)
def test_a_window_needs_a_mask_where_rows_reach_it(shape, settings, pairs):
    assert activations._masked_pairs(shape, PlanSettings(micro_batch_tokens=20, **settings)) == pairs


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, 2 * (120 + 2 * 4 * 20)),
        ({"compute": "fp32"}, 4 * (120 + 2 * 4 * 20)),
        ({"repeats_kv": True}, 2 * 120),
        ({"packed": True}, 0),
        ({"packed": True, "cut_by_row": True}, 2 * (120 + 2 * 4 * 20)),
        ({"row_tokens": 3}, 0),
    ],
    ids=str,
)
def test_a_local_layer_keeps_its_mask_and_every_heads_keys_and_values(settings, kept):
    given = PlanSettings(**{"micro_batch_tokens": 20, "row_tokens": 6} | settings)
    assert activations._window_bytes(LOCAL, given) == kept


@pytest.mark.parametrize(
    ("settings", "held"),
    [
        ({"micro_batch_tokens": 100}, 2 * 8 * (100 + 200) + 6 * 100 * 10),
        ({"micro_batch_tokens": 300}, 2 * 8 * (300 + 600) + 6 * 256 * 10),
        ({"micro_batch_tokens": 100, "trained_tokens": 7}, 2 * 8 * (100 + 14) + 6 * 7 * 10),
        ({"micro_batch_tokens": 100, "trained_tokens": 700}, 2 * 8 * (100 + 200) + 6 * 100 * 10),
        ({"micro_batch_tokens": 100, "trained_tokens": 7, "device": "cpu"}, 2 * 8 * (100 + 14) + 6 * 64 * 10),
        ({"micro_batch_tokens": 100, "compute": "fp32"}, 4 * 8 * (100 + 200) + 4 * 100 * 10),
        ({"micro_batch_tokens": 100, "packed": True}, 2 * 8 * (128 + 256) + 6 * 128 * 10),
    ],
    ids=str,
)
def test_the_loss_holds_states_their_gradient_and_a_chunk_of_logits(settings, held):
    assert loss_bytes(SHAPE, PlanSettings(**settings)) == held


def test_scaled_logits_exist_all_at_once():
    scaled = SHAPE.model_copy(update={"whole_logits": True})
    assert loss_bytes(scaled, PlanSettings(micro_batch_tokens=100, trained_tokens=7)) == 16 * 100 * 10
    assert loss_bytes(scaled, PlanSettings(micro_batch_tokens=100, packed=True)) == 16 * 128 * 10


def test_what_a_llamas_layer_keeps_per_token():
    """Two norms keep input and scale and feed two adapters; queries, keys, values, output and a sum a head; gate and up."""
    settings = PlanSettings(micro_batch_tokens=100, rank=2)
    costs = step_costs(SHAPE, settings)
    norms = 2 * (2 * 8 + 4) + 2 * 2 * 8
    attention = 2 * (2 * 8 + 2 * 4) + 4 * 2
    low_rank = 2 * 2 * 7
    assert (costs.saved, costs.boundary) == (norms + attention + low_rank + 2 * 2 * 16, 16)
    assert (costs.around, costs.ending, costs.first_saved_less) == (2 * 2 * 4 + 16, 20, 20)
    both_sides = 7 * 0 + (8 + 8) + 2 * (8 + 4) + (8 + 8)  # q, k and v, o; the MLP makes its own again
    assert costs.saved_fixed == 2 * 2 * 4 * both_sides // 4
    assert costs.forward == Moment(16, 16 * 16, inner_width=16)
    assert costs.end == Moment(2 * 2 * 8, norm_width=8, norm_fused=True)
    rotated = SHAPE.model_copy(update={"rotary_dim": 2})
    assert step_costs(rotated, settings).around == 2 * 2 * 2 + 16
    normed = SHAPE.model_copy(update={"qk_norm": True})
    assert step_costs(normed, settings).saved == costs.saved + 2 * (8 + 4) + 4 * (2 + 1)
    repeated = settings.model_copy(update={"repeats_kv": True})
    assert step_costs(SHAPE, repeated).saved == costs.saved + 2 * 2 * (2 - 1) * 4
    tiled = settings.model_copy(update={"tiled_mlp": True})
    assert step_costs(SHAPE, tiled).saved == norms + attention + 2 * 2 * 4
    assert step_costs(SHAPE, tiled).forward is None
    learned = settings.model_copy(update={"dora": True})
    outputs = 2 * 2 * 8 + 2 * (8 + 4)
    assert step_costs(SHAPE, learned).saved == norms + attention + outputs + low_rank + 4 * 2 * 16
    assert step_costs(SHAPE, learned).forward is None
    same = settings.model_copy(update={"adapter_precision": "bf16"})
    assert step_costs(SHAPE, same).saved_fixed == 0


def test_where_a_card_cuts_packed_rows_the_outputs_of_all_rows_are_kept_beside_theirs():
    settings = PlanSettings(micro_batch_tokens=100, rank=2, packed=True, row_tokens=50)
    whole = step_costs(SHAPE, settings).saved
    assert step_costs(SHAPE, settings.model_copy(update={"cut_by_row": True})).saved == whole + 2 * 8
    one_row = settings.model_copy(update={"cut_by_row": True, "row_tokens": 100})
    assert step_costs(SHAPE, one_row).saved == whole
    padded = settings.model_copy(update={"cut_by_row": True, "packed": False})
    assert step_costs(SHAPE, padded).saved == whole


def test_one_matrix_for_queries_keys_and_values_keeps_more_alive():
    fused = SHAPE.model_copy(update={"family": "phi3"})
    settings = PlanSettings(micro_batch_tokens=100, rank=2)
    apart, low_rank = step_costs(SHAPE, settings).saved, 2 * 2 * 7
    base = apart - low_rank + 2 * 2 * 4
    assert step_costs(fused, settings).saved == base + 2 * (8 + 4)
    assert step_costs(fused, settings.model_copy(update={"packed": True})).saved == base + 2 * (8 + 4)
    repeated = settings.model_copy(update={"repeats_kv": True})
    assert step_costs(fused, repeated).saved == base + 2 * 2 * (2 - 1) * 4


def test_the_moments_of_a_llamas_layer():
    h, inner, matrix = 2 * 8, 2 * 16, 2 * 8 * 16
    settings = PlanSettings(micro_batch_tokens=100, rank=2)
    gone = 2 * 2 * 16
    attention = [
        Moment(2 * h - gone, norm_width=8, norm_fused=True),
        Moment(h - 2 * h - gone + 2 * (2 * 8 + 2 * 4), attention=True),
    ]
    assert step_costs(SHAPE, settings).layer == (
        Moment(h, fixed=matrix, inner_width=16), Moment(h + h, fixed=matrix), *attention,
    )  # fmt: skip
    dropped = settings.model_copy(update={"dropout": True})
    assert step_costs(SHAPE, dropped).layer == (
        Moment(h + 16, fixed=matrix, inner_width=16), Moment(h + h + 2 * h + 8, fixed=matrix), *attention,
    )  # fmt: skip
    on_cpu = dropped.model_copy(update={"device": "cpu"})
    assert step_costs(SHAPE, on_cpu).layer[0] == Moment(h + 16, fixed=matrix + inner * 100, inner_width=16)
    long = on_cpu.model_copy(update={"micro_batch_tokens": 1000})
    assert step_costs(SHAPE, long).layer[0].fixed == matrix + inner * 256
    learned = settings.model_copy(update={"dora": True})
    assert step_costs(SHAPE, learned).layer == (Moment(h + h + 3 * inner, fixed=2 * matrix + 2 * 100 * 16),)
    fused = SHAPE.model_copy(update={"family": "phi3"})
    assert step_costs(fused, learned).layer == (Moment(h + h + 7 * inner, fixed=2 * matrix + 2 * 100 * 16),)
    many = learned.model_copy(update={"micro_batch_tokens": 1000})
    assert step_costs(SHAPE, many).layer[0].fixed == 2 * matrix + 2 * 256 * 16
    assert step_costs(fused, settings).layer[1] == Moment(h + h, fixed=2 * matrix)
    tiled = settings.model_copy(update={"tiled_mlp": True})
    assert step_costs(SHAPE, tiled).layer == (
        Moment(h + h, fixed=2 * inner * 100 + matrix, inner_width=16), Moment(h + h, fixed=2 * inner * 100 + matrix),
        Moment(2 * h, norm_width=8, norm_fused=True), Moment(h - 2 * h + 2 * (2 * 8 + 2 * 4), attention=True),
    )  # fmt: skip
    tiles = tiled.model_copy(update={"micro_batch_tokens": 5000})
    assert step_costs(fused, tiles).layer[:2] == (
        Moment(h + h, fixed=2 * inner * 1024 + matrix, inner_width=16), Moment(h + h, fixed=2 * inner * 1024 + 2 * matrix),
    )  # fmt: skip
    normed = step_costs(SHAPE.model_copy(update={"qk_norm": True}), settings).layer[-1]
    held = h - 2 * h - gone
    assert normed == Moment(held + 2 * (8 - 3 * 4), norm_width=8, norm_fused=True)


def test_the_moments_of_a_gemmas_layer():
    """Four norms a layer, in fp32: the one behind the MLP is gone with what it kept."""
    h, matrix, gone = 2 * 8, 2 * 8 * 16, 2 * 2 * 16
    gemma = SHAPE.model_copy(update={"family": "gemma3_text"})
    costs = step_costs(gemma, PlanSettings(micro_batch_tokens=100, rank=2))
    assert costs.layer == (
        Moment(2 * h, norm_width=8), Moment(h - 4, fixed=matrix, inner_width=16), Moment(h - 4 + h, fixed=matrix),
        Moment(2 * h - gone, norm_width=8), Moment(h - 4 * h - gone + 2 * (2 * 8 + 2 * 4), attention=True),
    )  # fmt: skip
    assert costs.forward == Moment(-4, 16 * 16, inner_width=16)
    assert costs.end == Moment(2 * h, norm_width=8)
    local = gemma.model_copy(update={"sliding_layers": 2, "sliding_window": 512})
    assert step_costs(local, PlanSettings(micro_batch_tokens=100)).around == 2 * (2 * 2 * 4) + 16


@pytest.mark.parametrize("checkpointed", [0, 1, 15])
def test_where_hardly_a_token_is_trained_the_last_mlp_is_the_worst_moment_of_a_real_model(checkpointed):
    """Its result, the last matrix and blocks of the inner width, on top of all that SmolLM2-135M keeps on the way."""
    tokens, hidden, inner, queries, keys = 64, 576, 1536, 576, 192
    norm = 2 * hidden + 4
    saved = 2 * norm + 2 * 2 * hidden + 2 * (2 * queries + 2 * keys) + 4 * 9 + 2 * 16 * 7 + 2 * 2 * inner
    copies = 2 * 16 * (2 * (hidden + queries) + 2 * (hidden + keys))  # of the adapter on attention
    around = 2 * 2 * 64 + 16
    kept = (30 - checkpointed) * (saved * tokens + copies) + (checkpointed * 2 * hidden + around) * tokens
    settings = PlanSettings(micro_batch_tokens=tokens, checkpointed_layers=checkpointed, trained_tokens=1)
    found = step_peak(REFERENCE_SHAPES["SmolLM2-135M"], settings)
    assert found == StepPeak(kept + 2 * hidden * tokens, 0, 2 * hidden * inner + 2 * 2 * inner * tokens)
