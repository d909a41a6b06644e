"""What a model is made of, counted by hand, and an adapter that would go elsewhere than it should."""

from __future__ import annotations

import warnings

import pytest

from qlora_studio.core.errors import StudioError
from qlora_studio.core.plan import LinearShape, StackedShape
from qlora_studio.engine import architecture
from qlora_studio.engine.architecture import check_adapter, count_model, pattern_of
from tests.engine.architectures import config_of

LAYER = "model.layers.*."


def test_a_mixture_is_its_layers_its_experts_and_the_rest():
    counted = count_model(config_of("mixtral"))  # four layers of width 128, four experts of which two are gone through
    assert counted.linears == (
        LinearShape("q_proj", 128, 128, 4, path=LAYER + "self_attn.q_proj"),
        LinearShape("k_proj", 128, 64, 4, path=LAYER + "self_attn.k_proj"),
        LinearShape("v_proj", 128, 64, 4, path=LAYER + "self_attn.v_proj"),
        LinearShape("o_proj", 128, 128, 4, path=LAYER + "self_attn.o_proj"),
    )
    assert {one.path.rpartition(".")[2]: (one.numbers, one.count, one.active) for one in counted.stacked} == {
        "gate_up_proj": (4 * 2 * 256 * 128, 4, 0.5),
        "down_proj": (4 * 256 * 128, 4, 0.5),
    }
    assert {type(one) for one in counted.stacked} == {StackedShape}


def test_a_layer_that_is_not_quantised_counts_among_the_rest():
    (conv,) = {one.transposed for one in count_model(config_of("gpt2")).linears}
    assert conv is True
    shapes = count_model(config_of("gpt2")).linears
    assert [(one.name, one.inputs, one.outputs, one.bias) for one in shapes] == [
        ("c_attn", 128, 384, True), ("c_proj", 128, 128, True), ("c_fc", 128, 512, True), ("c_proj", 512, 128, True),
    ]  # fmt: skip


def test_numbers_in_a_name_are_a_pattern():
    assert pattern_of("model.layers.12.mlp.experts.3.up_proj") == "model.layers.*.mlp.experts.*.up_proj"
    assert pattern_of("h.0a.w1") == "h.0a.w1"


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["model.layers.0.extra"], "model.layers.*.extra"),
        (["model.layers.1.b", "model.layers.1.a", "z"], "model.layers.*.a and 2 more"),
    ],
)
def test_layers_that_an_adapter_would_miss_are_named_by_the_first_and_counted(monkeypatch, more, named):
    inner = architecture.linear_names
    monkeypatch.setattr(architecture, "linear_names", lambda model: [*inner(model), *more])
    with pytest.raises(StudioError) as caught:
        check_adapter(config_of("llama"))
    (problem,) = caught.value.problems
    assert problem.message == f"An adapter would not reach a llama model's layers as it should: {named}."
    assert problem.field == "model_type"


def test_an_adapter_that_goes_where_it_should_is_no_problem_and_warns_of_nothing(monkeypatch):
    inner = architecture.attach_adapter

    def warn(model, *rest, **named):
        assert model.config.num_hidden_layers == 4
        warnings.warn("a new name is coming", FutureWarning, stacklevel=1)
        return inner(model, *rest, **named)

    monkeypatch.setattr(architecture, "attach_adapter", warn)
    config = config_of("llama")
    config.num_hidden_layers = 9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_adapter(config)
    monkeypatch.setattr(architecture, "attach_adapter", lambda *_, **__: pytest.fail("attached"))
    check_adapter(config_of("gpt2"))
    monkeypatch.setattr(architecture, "linear_names", lambda model: [])
    check_adapter(config_of("llama"))
