"""What a model is made of, counted by hand on one that is small enough for it."""

import dataclasses

import pytest

from qlora_studio.core.plan import LinearShape, MeasuredShape, ModelShape, Moment, PlanSettings, StackedShape, StepCosts
from qlora_studio.planner.families import (
    FAMILIES,
    Family,
    count_adapter_numbers,
    count_adapter_weights,
    count_biases,
    count_norm_weights,
    count_recomputed,
    count_weights,
    family_of,
    is_in_mlp,
    list_adapted,
    list_linears,
    padding_of,
    rotary_tables,
    tensors_of,
)

TINY = ModelShape(
    name="tiny", family="llama", hidden=8, layers=3, intermediate=12, heads=2, kv_heads=1, head_dim=5, vocab=20,
    tied_embeddings=True, max_positions=64,
)  # fmt: skip
COSTS = StepCosts(1, 1, 0, 0, 0, 0, (Moment(1),), Moment(1))


def of(**changes):
    return TINY.model_copy(update=changes)


def measured(**changes):
    linears = (LinearShape("one", 8, 4, 3, path="model.layers.*.one"), LinearShape("down_proj", 2, 8, 3))
    values = {"linears": linears, "other_bytes": 100, "costs": {"bf16": COSTS, "fp32": COSTS}, "rank": 4}
    return of(family="odd", exact=False, measured=MeasuredShape(**(values | changes)))


def test_a_plain_layer_has_seven_matrices_and_a_fused_one_four():
    attention, mlp = "model.layers.*.self_attn", "model.layers.*.mlp"
    assert list_linears(TINY) == (
        LinearShape("q_proj", 8, 10, 3, path=f"{attention}.q_proj"),
        LinearShape("k_proj", 8, 5, 3, path=f"{attention}.k_proj"),
        LinearShape("v_proj", 8, 5, 3, path=f"{attention}.v_proj"),
        LinearShape("o_proj", 10, 8, 3, path=f"{attention}.o_proj"),
        LinearShape("gate_proj", 8, 12, 3, path=f"{mlp}.gate_proj"),
        LinearShape("up_proj", 8, 12, 3, path=f"{mlp}.up_proj"),
        LinearShape("down_proj", 12, 8, 3, path=f"{mlp}.down_proj"),
    )
    assert list_linears(of(family="phi3")) == (
        LinearShape("qkv_proj", 8, 20, 3, path=f"{attention}.qkv_proj"),
        LinearShape("o_proj", 10, 8, 3, path=f"{attention}.o_proj"),
        LinearShape("gate_up_proj", 8, 24, 3, path=f"{mlp}.gate_up_proj"),
        LinearShape("down_proj", 12, 8, 3, path=f"{mlp}.down_proj"),
    )
    assert list_linears(measured()) == measured().measured.linears


@pytest.mark.parametrize(
    ("changes", "biased", "numbers"),
    [
        ({}, [], 0),
        ({"attention_bias": True}, ["q_proj", "k_proj", "v_proj"], 3 * (10 + 5 + 5)),
        ({"output_bias": True}, ["o_proj"], 3 * 8),
        ({"mlp_bias": True}, ["gate_proj", "up_proj", "down_proj"], 3 * (12 + 12 + 8)),
    ],
)
def test_biases_stand_where_the_config_puts_them(changes, biased, numbers):
    shape = of(**changes)
    assert [linear.name for linear in list_linears(shape) if linear.bias] == biased
    assert count_biases(shape) == numbers


def test_only_the_three_or_two_matrices_of_a_gated_mlp_are_in_it():
    assert [is_in_mlp(linear) for linear in list_linears(TINY)] == [False] * 4 + [True] * 3
    assert [is_in_mlp(linear) for linear in list_linears(of(family="phi3"))] == [False, False, True, True]


def test_families_differ_from_a_plain_llama_in_what_is_known_of_them():
    assert {name for name, family in FAMILIES.items() if family != Family()} == {"phi3", "gemma3_text"}
    plain = Family(fused=False, norms=2, norm_in_fp32=False, embed_scale=False)
    assert family_of(TINY) == plain == family_of(of(family="odd"))
    assert family_of(of(family="phi3")) == dataclasses.replace(plain, fused=True)
    gemma = Family(fused=False, norms=4, norm_in_fp32=True, embed_scale=True)
    assert family_of(of(family="gemma3_text")) == gemma


@pytest.mark.parametrize(
    ("family", "local", "tables"),
    [("gemma3_text", 0, 1), ("gemma3_text", 1, 2), ("gemma3_text", 2, 2), ("gemma3_text", 3, 1), ("mistral", 2, 1)],
)
def test_only_gemma_has_rotary_positions_of_its_own_for_local_layers(family, local, tables):
    assert rotary_tables(of(family=family, sliding_layers=local)) == tables


def test_norms_of_layers_heads_and_the_last_one():
    assert count_norm_weights(TINY) == 3 * 2 * 8 + 8
    assert count_norm_weights(of(qk_norm=True)) == 3 * (2 * 8 + 2 * 5) + 8
    assert count_norm_weights(of(family="gemma3_text", qk_norm=True)) == 3 * (4 * 8 + 2 * 5) + 8


def test_weights_that_each_token_goes_through_and_those_once_more():
    whole = 3 * (80 + 40 + 40 + 80 + 96 + 96 + 96)
    assert (count_weights(TINY), count_recomputed(TINY)) == (whole, whole - 3 * 96)
    gemma = of(family="gemma3_text")
    assert (count_weights(gemma), count_recomputed(gemma)) == (whole, whole), "a norm stands behind its last product"
    experts = measured(stacked=(StackedShape("experts", 1001, 3, 0.25), StackedShape("more", 10, 2)))
    assert count_weights(experts) == count_recomputed(experts) == 3 * (32 + 16) + 751 + 20
    assert count_recomputed(measured()) == 3 * (32 + 16), "nobody knows where it would stop"


def test_an_adapter_has_two_matrices_a_layer_and_dora_a_length_for_each_output():
    sides = (8 + 10) + 2 * (8 + 5) + (10 + 8) + 2 * (8 + 12) + (12 + 8)
    outputs = 10 + 5 + 5 + 8 + 12 + 12 + 8
    assert count_adapter_weights(TINY, 2) == 3 * 2 * sides
    assert count_adapter_numbers(TINY, PlanSettings(rank=2, dora=True)) == 3 * (2 * sides + outputs)
    query = list_linears(TINY)[0]
    assert tensors_of(query, PlanSettings(rank=3)) == (24, 30)
    assert tensors_of(query, PlanSettings(rank=3, dora=True)) == (24, 30, 10)


def test_layers_that_were_chosen_are_adapted_by_name_and_by_number():
    chosen = PlanSettings(rank=2, adapted=("q_proj", "v_proj"), adapted_layers=2)
    assert [(linear.name, linear.count) for linear in list_adapted(TINY, chosen)] == [("q_proj", 2), ("v_proj", 2)]
    assert count_adapter_numbers(TINY, chosen) == 2 * 2 * ((8 + 10) + (8 + 5))
    assert list_adapted(TINY, PlanSettings()) == list_linears(TINY)
    twice = measured(linears=(LinearShape("expert", 8, 4, 6),))
    assert [linear.count for linear in list_adapted(twice, PlanSettings(adapted_layers=1))] == [2]


def test_why_rows_are_padded_is_what_the_dry_run_found():
    assert (padding_of(TINY), padding_of(measured()), padding_of(measured(padded_because="it is odd"))) == (
        None, None, "it is odd",
    )  # fmt: skip
