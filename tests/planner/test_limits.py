"""What cannot be quantised, adapted or merged: each sentence, and where it begins to be said."""

import pytest

from qlora_studio.core.config import LoraSettings
from qlora_studio.core.plan import GIB, LinearShape, StackedShape
from qlora_studio.planner.families import list_linears
from qlora_studio.planner.limits import describe_limits, find_target_problem, find_unmergeable
from tests.planner.test_families import TINY, measured

FILES = {
    f"model.layers.{layer}.{linear.path.removeprefix('model.layers.*.')}.weight": (linear.outputs, linear.inputs)
    for linear in list_linears(TINY)
    for layer in range(3)
}


def test_a_model_of_plain_layers_has_no_limits():
    assert describe_limits(TINY) == describe_limits(TINY, FILES) == describe_limits(measured()) == ()


def test_experts_are_named_with_their_size():
    stacked = (StackedShape("m.*.up", 3 << 28, 2), StackedShape("m.*.down", GIB, 1), StackedShape("m.*.up", 0, 1))
    assert describe_limits(measured(stacked=stacked)) == (
        "The experts stay as they are, in 16 bit and untrained: m.*.down, m.*.up, 2.7 billion numbers in 5.00 GiB. "
        "Only the other layers are quantised and adapted.",
    )


def test_layers_of_a_kind_of_their_own_are_named_with_their_size_three_of_them():
    def plain(count):
        return tuple(LinearShape(f"odd{number}", 1 << 14, 1 << 14, 2, four_bit=False) for number in range(count))

    four_bit = LinearShape("usual", 8, 8, 3)
    for count, named in (
        (1, "odd0, 1.00 GiB"), (3, "odd0, odd1, odd2, 3.00 GiB"), (5, "odd0, odd1, odd2 and 2 more, 5.00 GiB"),
    ):  # fmt: skip
        assert describe_limits(measured(linears=(four_bit, *plain(count)))) == (
            f"Linear layers of a kind of their own stay in 16 bit: {named}. They are adapted all the same.",
        )


def test_a_base_that_nothing_can_be_merged_into_is_said_to_be_none():
    without = {name: size for name, size in FILES.items() if "o_proj" not in name}
    assert describe_limits(TINY, without) == (
        "The adapter trains and cannot be merged into this base: model.layers.*.self_attn.o_proj. "
        "It can be exported as it is.",
    )
    assert find_unmergeable(list_linears(TINY)) == []


QUERY = "model.layers.{}.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("files", "there"),
    [
        ({QUERY.format(number): (10, 8) for number in range(3)}, True),
        ({QUERY.format(number): (10, 8) for number in range(4)}, True),
        ({QUERY.format(number): (10, 8) for number in range(2)}, False),
        ({QUERY.format(number): (8, 10) for number in range(3)}, False),
        ({QUERY.format(number): (10, 8 + number // 3) for number in range(4)}, False),
        ({QUERY.format(number).removeprefix("model."): (10, 8) for number in range(3)}, True),
        ({f"x{QUERY.format(number)}": (10, 8) for number in range(3)}, False),
        ({f"{QUERY.format(number)}x": (10, 8) for number in range(3)}, False),
        ({QUERY.format(number).replace(".", "_"): (10, 8) for number in range(3)}, False),
    ],
    ids=["all", "more", "too few", "turned", "one of another size", "bare", "a prefix", "a suffix", "no dots"],
)
def test_a_layer_is_there_as_often_as_the_model_has_it_in_its_shape(files, there):
    (query, *_) = list_linears(TINY)
    assert find_unmergeable([query], files) == ([] if there else [query.path])


def test_a_transposed_layer_is_looked_for_the_other_way_round_and_one_without_a_path_is_taken_as_there():
    turned = LinearShape("c_attn", 8, 10, 1, transposed=True, path="h.*.c_attn")
    assert find_unmergeable([turned], {"h.0.c_attn.weight": (8, 10)}) == []
    assert find_unmergeable([turned], {"h.0.c_attn.weight": (10, 8)}) == ["h.*.c_attn"]
    assert find_unmergeable([LinearShape("unknown", 8, 10, 1)], {}) == []


def problem(shape=TINY, **lora):
    found = find_target_problem(LoraSettings(**lora), shape)
    return found and (found.message, found.hint, found.field)


def test_names_that_a_model_does_not_have_are_refused_with_those_it_has():
    assert problem(target_modules="q_proj, down_proj") is None
    assert problem(target_modules="q_proj, zeta, alpha") == (
        "tiny has no linear layer 'alpha'.",
        "It has down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj.", "lora.target_modules",
    )  # fmt: skip


def test_layers_are_chosen_by_number_only_where_they_are_all_alike():
    assert problem(layers="0-2") is problem(layers=" ") is None
    assert problem(layers="0-3") == (
        "field 'lora.layers': '0-3' is no range of the layers 0 to 2.", "Write it as 0-7, 20- or 3.", "lora.layers",
    )  # fmt: skip
    unlike = measured(linears=(LinearShape("one", 8, 4, 3), LinearShape("two", 8, 4, 2)))
    assert problem(unlike, layers="0") == (
        "The layers of tiny are not all alike, so they cannot be chosen by number.",
        "Leave it empty, or choose target modules.", "lora.layers",
    )  # fmt: skip
    assert problem(unlike) is None
