"""A layer with its adapter as plain arithmetic: every product and gradient by its formula, and which layers are one."""

from __future__ import annotations

from types import SimpleNamespace

import bitsandbytes as bnb
import pytest
import torch
from torch import nn

from qlora_studio.engine.kernels.dropout import RowDropout, RowSeeds
from qlora_studio.engine.kernels.linear import AdaptedProduct, as_product, dense_weight, find_more, is_plain

TOKENS, INPUTS, OUTPUTS, RANK, SCALE = 5, 4, 3, 2, 0.5


def make(*, bias=False, adapter=True, p=0.0) -> AdaptedProduct:
    torch.manual_seed(0)
    base = nn.Linear(INPUTS, OUTPUTS, bias=bias)
    if not adapter:
        return AdaptedProduct(base)
    dropout = RowDropout(p, 3, RowSeeds(("1:1:0",), ((0, TOKENS),))) if p else None
    return AdaptedProduct(base, torch.randn(RANK, INPUTS), torch.randn(OUTPUTS, RANK), SCALE, dropout)


def defined(product: AdaptedProduct, x: torch.Tensor) -> torch.Tensor:
    """`W·x + bias + scale·B·A·d(x)`."""
    out = torch.nn.functional.linear(x, product.base.weight, product.base.bias)
    if product.a is None:
        return out
    thin = x if product.dropout is None else x * product.dropout.mask(x) / (1 - product.dropout.p)
    return out + product.scale * (thin @ product.a.t() @ product.b.t())


@pytest.mark.parametrize("p", [0.0, 0.25])
@pytest.mark.parametrize(("bias", "adapter"), [(False, True), (True, True), (True, False), (False, False)])
def test_products_and_gradients_are_the_formulas(bias, adapter, p):
    product, x = make(bias=bias, adapter=adapter, p=p), torch.randn(TOKENS, INPUTS)
    leaf, gradient = x.clone().requires_grad_(), torch.randn(TOKENS, OUTPUTS)
    wanted = defined(product, leaf)
    wanted.backward(gradient)
    with torch.no_grad():
        out, inner = product.forward(x)
        mask = product.mask(x)
        torch.testing.assert_close(out, wanted)
        torch.testing.assert_close(product.of_dense(x.clone(), product.dense(torch.float32), mask), wanted)
        assert (inner is None) == (not adapter) and (mask is None) == (not adapter or p == 0)
        low_rank = product.low_rank_gradient(gradient)
        weight = product.dense(torch.float32)
        found = product.input_gradient(gradient, low_rank, weight, mask=mask)
        torch.testing.assert_close(found, leaf.grad)
        into = torch.ones(TOKENS, INPUTS)
        assert product.input_gradient(gradient, low_rank, weight, into, mask) is into
        torch.testing.assert_close(into, leaf.grad + 1)
        if adapter:
            torch.testing.assert_close(inner, product.thin_out(x, mask) @ product.a.t())
            torch.testing.assert_close(low_rank, SCALE * gradient @ product.b)
        else:
            assert low_rank is None


def test_what_is_left_out_is_made_up_for_and_the_input_stays_unless_it_may_go():
    product, x = make(p=0.25), torch.full((TOKENS, INPUTS), 3.0)
    mask = product.mask(x)
    assert mask.dtype == torch.bool and 0 < mask.sum() < mask.numel()
    thin = product.thin_out(x, mask)
    assert torch.equal(thin, torch.where(mask, 4.0, 0.0)) and bool((x == 3).all())
    assert product.thin_out_(x, mask) is x and torch.equal(x, thin)
    plain = make()
    assert plain.thin_out(x, None) is x and plain.thin_out_(x, None) is x and plain.mask(x) is None


def test_factors_and_bias_are_used_in_the_format_of_the_rows():
    product = make(bias=True)
    base = nn.Linear(INPUTS, OUTPUTS, dtype=torch.bfloat16)
    product = AdaptedProduct(base, product.a, product.b, SCALE)
    x = torch.randn(TOKENS, INPUTS).bfloat16()
    with torch.no_grad():
        out, inner = product.forward(x)
        dense = product.of_dense(x.clone(), product.dense(torch.bfloat16), None)
    assert {out.dtype, inner.dtype, dense.dtype} == {torch.bfloat16}
    torch.testing.assert_close(out, dense)


def layer(base=None, dropout=None, **changes):
    """What a LoRA layer of PEFT looks like to these functions."""
    base = base or nn.Linear(INPUTS, OUTPUTS, bias=False)
    factor = lambda inputs, outputs: nn.Linear(inputs, outputs, bias=False)  # noqa: E731
    values = {
        "base_layer": base, "disable_adapters": False, "active_adapters": ["one"], "merged": False, "lora_variant": {},
        "lora_A": {"one": factor(INPUTS, RANK)}, "lora_B": {"one": factor(RANK, OUTPUTS)},
        "lora_dropout": {"one": dropout or nn.Identity()}, "scaling": {"one": SCALE},
    }  # fmt: skip
    return SimpleNamespace(**(values | changes))


def two_factors():
    return {"one": nn.Linear(INPUTS, RANK), "two": nn.Linear(INPUTS, RANK)}


class Own(nn.Linear):
    """A linear layer with a forward that nobody here knows."""


def drop(p=0.5, seeds=("1:1:0",), training=True):
    return RowDropout(p, 0, RowSeeds(seeds, ((0, TOKENS),))).train(training)


@pytest.mark.parametrize(
    ("one", "more"),
    [
        (nn.Linear(2, 2), None),
        (layer(), None),
        (Own(2, 2), "a kind of their own"),
        (layer(Own(2, 2)), "a kind of their own"),
        (layer(active_adapters=["one", "two"], lora_A=two_factors(), lora_B={}), "several adapters"),
        (layer(merged=True), "several adapters"),
        (layer(merged=True, disable_adapters=True), None),
        (layer(lora_variant={"one": "dora"}), "DoRA"),
        (layer(lora_B={"one": nn.Linear(RANK, OUTPUTS, bias=True)}), "an adapter with a bias"),
        (layer(dropout=nn.Dropout(0.1)), "dropout from one stream"),
        (layer(dropout=drop()), None),
        (layer(active_adapters=["one", "absent"]), None),
    ],
)
def test_what_makes_a_layer_more_than_a_product_is_named(one, more):
    assert find_more(one) == more
    assert (as_product(one) is None) == (more is not None)


def test_a_layer_is_its_base_its_factors_its_scale_and_the_dropout_that_is_drawn_again():
    plain = nn.Linear(2, 2)
    assert as_product(plain) == AdaptedProduct(plain, None, None, 0.0, None)
    one = layer()
    whole = AdaptedProduct(one.base_layer, one.lora_A["one"].weight, one.lora_B["one"].weight, SCALE, None)
    found = as_product(one)
    assert found.base is whole.base and found.a is whole.a and found.b is whole.b
    assert (found.scale, found.dropout) == (SCALE, None)
    for off in (layer(disable_adapters=True), layer(active_adapters=[]), layer(active_adapters=["absent"])):
        assert as_product(off) == AdaptedProduct(off.base_layer)
    drawn = drop()
    assert as_product(layer(dropout=drawn)).dropout is drawn
    assert as_product(layer(dropout=drop(training=False))).dropout is None
    assert as_product(layer(dropout=drop(seeds=()))) is None, "without seeds it cannot be drawn again"


def test_a_weight_is_given_whole_in_another_format_whatever_it_is_kept_in():
    plain = nn.Linear(64, 64, bias=False)
    assert torch.equal(dense_weight(plain, torch.bfloat16), plain.weight.bfloat16())
    four = bnb.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    four.load_state_dict({"weight": plain.weight.detach()})
    four.to("cpu")
    dense = dense_weight(four, torch.float32)
    expected = bnb.functional.dequantize_4bit(four.weight.data, four.weight.quant_state)
    assert torch.equal(dense, expected.float()) and dense.shape == (64, 64)
    stand_in = SimpleNamespace(dense_weight=lambda dtype: torch.ones(1, dtype=dtype))
    assert dense_weight(stand_in, torch.float16).dtype == torch.float16
    assert is_plain(four) and is_plain(plain) and is_plain(stand_in) and not is_plain(Own(1, 1))


def test_where_nothing_came_through_the_adapter_the_gradient_is_that_of_the_base():
    torch.manual_seed(0)
    base, gradient = nn.Linear(5, 3, bias=False), torch.randn(4, 3)
    product = AdaptedProduct(base, torch.randn(2, 5), torch.randn(3, 2), 0.5)
    plain = gradient @ base.weight
    torch.testing.assert_close(product.input_gradient(gradient, None, base.weight.detach()), plain.detach())
    before = torch.randn(4, 5)
    torch.testing.assert_close(
        product.input_gradient(gradient, None, base.weight.detach(), into=before.clone()), (before + plain).detach()
    )
