"""Storages are counted while they live, before and after the turn from forward to backward."""

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from qlora_studio.engine import stand_ins
from qlora_studio.engine.stand_ins import (
    ATTENTION,
    RANK,
    AdaptedLinear,
    FrozenLinear,
    GradientKept,
    GroupedProduct,
    StorageCount,
    attention_of,
    build,
    features_of,
    planned_experts,
    shorten,
    without_numbers,
)
from tests.engine.architectures import config_of


def test_the_most_before_the_turn_and_after_it_are_told_apart():
    known = torch.ones(1000)
    count = StorageCount([known])
    with count:
        kept = torch.ones(250)
        passing = torch.ones(500) + 1
        del passing
        count.turning = True
        later = torch.ones(100)
        del later
        last, view = torch.ones(50), kept[:10]
        known.add_(1)
    assert count.turn == (1000, 1000 + 2 * 2000)
    assert count.most == 1000 + 400
    assert count.now == 1000 + 200
    del last, view
    assert count.now == 1000 and len(kept) == 250


def test_a_layer_in_four_bits_keeps_half_a_byte_a_number_and_one_in_the_dtype_it_has():
    four, whole = FrozenLinear(3, 5, True), FrozenLinear(3, 5, False)
    assert (four.weight.dtype, tuple(four.weight.shape)) == (torch.uint8, (8,))
    assert tuple(FrozenLinear(4, 5, True).weight.shape) == (10,)
    assert (whole.weight.dtype, tuple(whole.weight.shape)) == (torch.float32, (5, 3))
    assert not four.weight.requires_grad and not whole.weight.requires_grad
    for layer in (four, whole):
        made = layer.dense_weight(torch.bfloat16)
        assert (made.dtype, tuple(made.shape)) == (torch.bfloat16, (5, 3))
        x = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
        layer(x).sum().backward()
        assert tuple(layer(x).shape) == (2, 5) and x.grad.dtype == torch.bfloat16


def test_a_transposed_layer_has_its_outputs_behind_its_inputs():
    assert features_of(Conv1D(7, 3)) == (3, 7) and features_of(nn.Linear(3, 7)) == (3, 7)
    adapted = AdaptedLinear(Conv1D(7, 3), True)
    a, b = adapted.lora_A["default"].weight, adapted.lora_B["default"].weight
    assert (tuple(a.shape), tuple(b.shape), a.dtype) == ((RANK, 3), (7, RANK), torch.float32)
    assert tuple(adapted(torch.ones(2, 3)).shape) == (2, 7)


def test_rows_of_one_expert_are_copied_for_the_moment_in_both_directions():
    x, weight = torch.ones(6, 4, requires_grad=True), torch.ones(2, 9, 4)
    count = StorageCount([x, weight])
    with count:
        out = GroupedProduct.apply(x, weight, 9, 3)
    assert tuple(out.shape) == (6, 9) and count.now == 4 * 6 * 9
    assert count.most == count.now + 4 * 3 * 9, "three tokens as wide as what comes out"
    gradient = torch.ones(6, 9)
    count = StorageCount([x, weight, out, gradient])
    with count:
        (back,) = torch.autograd.grad(out, x, gradient)
    assert tuple(back.shape) == (6, 4) and count.most == 4 * (6 * 4 + 3 * 9)


def test_the_gradient_of_the_loss_is_there_from_the_start():
    hidden = torch.ones(5, 4, dtype=torch.bfloat16, requires_grad=True)
    count = StorageCount([hidden])
    with count:
        loss = GradientKept.apply(hidden)
    assert (tuple(loss.shape), loss.item(), count.now) == ((), 0, 5 * 4 * 2 + 2)
    loss.backward()
    assert hidden.grad.shape == hidden.shape


@pytest.mark.parametrize(
    ("family", "kinds"), [("llama", None), ("gemma2", ["sliding_attention", "full_attention", "sliding_attention"])]
)
def test_a_short_copy_has_fewer_layers_a_small_vocabulary_and_leaves_the_config(family, kinds):
    config = config_of(family)
    before = config.to_dict()
    short = shorten(config, 3)
    assert (short.num_hidden_layers, short.vocab_size, short.pad_token_id, short.use_cache) == (3, 256, None, False)
    assert (getattr(short, "layer_types", None), config.to_dict()) == (kinds, before)


def test_a_copy_ties_its_weights_as_the_model_does():
    config = config_of("llama")
    config.tie_word_embeddings = True
    with without_numbers():
        model = build(shorten(config, 2), torch.bfloat16)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (config_of("llama"), ATTENTION),
        (config_of("falcon"), "sdpa"),
        (config_of("gpt_oss"), "eager"),
        (PreTrainedConfig(), ATTENTION),
    ],
    ids=["llama", "a table of its own", "no fused kernels", "no known class"],
)
def test_attention_is_the_stand_in_but_where_a_class_takes_none(config, name):
    assert attention_of(config) == name


class Experts:
    """Two experts of 4 inner numbers for tokens of 3, with what transformers' classes of experts have."""

    def __init__(self, *, gate: bool, bias: bool, transposed: bool) -> None:
        self.has_gate, self.has_bias, self.is_transposed = gate, bias, transposed
        wide = 8 if gate else 4
        first = torch.ones(2, 3, wide) if transposed else torch.ones(2, wide, 3)
        self.down_proj, self.down_proj_bias = torch.ones(2, 3, 4), torch.ones(2, 3)
        if gate:
            self.gate_up_proj, self.gate_up_proj_bias = first, torch.ones(2, wide)
        else:
            self.up_proj, self.up_proj_bias = first, torch.ones(2, wide)
        self.seen: list[tuple[int, ...]] = []

    def _apply_gate(self, product):
        self.seen.append(tuple(product.shape))
        return product[..., :4]

    def act_fn(self, product):
        self.seen.append(tuple(product.shape))
        return product


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_every_kind_of_experts_goes_through_with_its_inner_width(gate, bias, transposed):
    experts = Experts(gate=gate, bias=bias, transposed=transposed)
    hidden = torch.ones(5, 3, dtype=torch.bfloat16, requires_grad=True)
    chosen, weights = torch.tensor([[0, 1]] * 5), torch.ones(5, 2)
    out = planned_experts(experts, hidden, chosen, weights)
    assert (tuple(out.shape), out.dtype, experts.seen) == ((5, 3), torch.bfloat16, [(10, 8 if gate else 4)])
    out.sum().backward()
    assert hidden.grad.shape == hidden.shape


def test_what_experts_give_comes_back_to_its_token_weighed(monkeypatch):
    """With products that only copy, each token gets the sum of its own numbers times the weights of its experts."""
    monkeypatch.setattr(stand_ins.GroupedProduct, "apply", lambda x, weight, outputs, tokens: x)
    experts = Experts(gate=False, bias=False, transposed=False)
    hidden = torch.tensor([[1.0, 2, 3], [10, 20, 30], [100, 200, 300]])
    chosen, weights = torch.tensor([[1, 0], [0, 1], [1, 1]]), torch.tensor([[2.0, 3], [1, 1], [0.5, 0]])
    out = planned_experts(experts, hidden, chosen, weights)
    assert out.tolist() == [[5, 10, 15], [20, 40, 60], [50, 100, 150]]
    biased = Experts(gate=False, bias=True, transposed=False)
    biased.up_proj_bias, biased.down_proj_bias = (
        torch.tensor([[1.0] * 3, [2.0] * 3]),
        torch.tensor([[5.0] * 3, [7.0] * 3]),
    )
    out = planned_experts(biased, torch.zeros(3, 3), chosen, torch.ones(3, 2))
    assert out.tolist() == [[15] * 3, [15] * 3, [18] * 3], "of both experts 1 + 5 and 2 + 7; twice the second"


def test_a_layer_s_backward_pass_makes_its_weight_again_and_keeps_no_input():
    layer = FrozenLinear(3, 5, True)
    x = torch.ones(2, 3, requires_grad=True)
    out = layer(x)
    assert out.grad_fn.saved_tensors == () and tuple(out.shape) == (2, 5)
    (gradient,) = torch.autograd.grad(out, x, torch.ones(2, 5))
    assert tuple(gradient.shape) == (2, 3)


def test_experts_stand_in_only_where_a_family_has_some_and_lets_them_be_chosen():
    found = {family: stand_ins._has_experts(config_of(family)) for family in ("llama", "gpt2", "qwen3_moe", "mixtral")}
    assert found == {"llama": False, "gpt2": False, "qwen3_moe": True, "mixtral": True}
    assert stand_ins._has_experts(PreTrainedConfig()) is False, "no class writes text from it"
