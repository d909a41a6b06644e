"""DoRA against its formula, `m / |W + s·B·A| · (W + s·B·A)·x`, with bias and dropout, and when its norm is computed anew."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qlora_studio.engine.kernels import dora
from qlora_studio.engine.kernels.dora import dora_forward, weight_norm

INPUTS, OUTPUTS, RANK, SCALE = 5, 4, 2, 0.5


class Halves(nn.Module):
    """Dropout of which everybody knows what it leaves: every second number, doubled."""

    def forward(self, x):
        return x * torch.tensor([2.0, 0] * x.shape[-1])[: x.shape[-1]]


class Layer(nn.Module):
    """What `dora_forward` asks of PEFT's layer."""

    def __init__(self, *, bias=True, dropout=False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.base_layer = nn.Linear(INPUTS, OUTPUTS, bias=bias).requires_grad_(False)
        self.lora_A = nn.ModuleDict({"one": nn.Linear(INPUTS, RANK, bias=False)})
        self.lora_B = nn.ModuleDict({"one": nn.Linear(RANK, OUTPUTS, bias=False)})
        self.lora_dropout = nn.ModuleDict({"one": Halves() if dropout else nn.Identity()})
        self.lora_magnitude_vector = nn.ModuleDict({"one": nn.Module()})
        self.lora_magnitude_vector["one"].weight = nn.Parameter(torch.rand(OUTPUTS) + 0.5)
        self.scaling, self.active_adapters, self.disable_adapters = {"one": SCALE}, ["one"], False

    @property
    def directed(self) -> torch.Tensor:
        """`W + s·B·A`."""
        return self.base_layer.weight + SCALE * self.lora_B["one"].weight @ self.lora_A["one"].weight

    def defined(self, x):
        norm = self.directed.norm(dim=1).detach()  # a constant in the backward pass
        factor = self.lora_magnitude_vector["one"].weight / norm
        thin, weight, bias = self.lora_dropout["one"](x), self.base_layer.weight, self.base_layer.bias
        out = factor * (thin @ self.directed.t())
        if thin is not x:  # what dropout takes from the base's product comes back
            out = out + (x - thin) @ weight.t()
        return out if bias is None else out + bias


@pytest.mark.parametrize("at_once", [2, 256])
@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_outputs_and_gradients_are_the_formula_s(bias, dropout, at_once, monkeypatch):
    monkeypatch.setattr(dora, "ROWS_AT_ONCE", at_once)
    layer = Layer(bias=bias, dropout=dropout)
    x, upstream = torch.randn(2, 3, INPUTS), torch.randn(2, 3, OUTPUTS)
    trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    found, wanted = [], []
    for forward, into in ((lambda leaf: dora_forward(layer, leaf), found), (layer.defined, wanted)):
        leaf = x.clone().requires_grad_()
        out = forward(leaf)
        into += [out, *torch.autograd.grad(out, [leaf, *trained], upstream)]
    assert len(found) == 2 + 3
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_an_adapter_that_is_off_leaves_the_base_s_product():
    layer, x = Layer(), torch.randn(2, 3, INPUTS)
    layer.disable_adapters = True
    assert torch.equal(dora_forward(layer, x), layer.base_layer(x))
    layer.disable_adapters, layer.active_adapters = False, []
    assert torch.equal(dora_forward(layer, x), layer.base_layer(x))


def test_a_length_of_zero_has_no_gradient_and_spoils_no_other():
    layer = Layer()
    magnitudes = layer.lora_magnitude_vector["one"].weight
    with torch.no_grad():
        magnitudes[1] = 0
    dora_forward(layer, torch.randn(3, INPUTS)).sum().backward()
    assert (
        magnitudes.grad[1] == 0 and bool(magnitudes.grad.isfinite().all()) and bool((magnitudes.grad != 0).sum() == 3)
    )


def test_the_norm_is_of_each_output_and_kept_while_nothing_is_trained(monkeypatch):
    layer, made = Layer(), []
    inner = dora.dense_weight
    monkeypatch.setattr(dora, "dense_weight", lambda *a: made.append(1) or inner(*a))

    def norm():
        found = weight_norm(layer, "one", torch.float32)
        torch.testing.assert_close(found, layer.directed.norm(dim=1))
        return len(made)

    assert (norm(), norm(), layer.kept_norm) == (1, 2, None)
    layer.eval()
    assert (norm(), norm(), norm()) == (3, 3, 3)
    with torch.no_grad():
        layer.lora_A["one"].weight.mul_(2)
    assert (norm(), norm()) == (4, 4)
    with torch.no_grad():
        layer.lora_B["one"].weight.add_(1)
    assert norm() == 5
    layer.train()
    assert (norm(), layer.kept_norm) == (6, None)
    layer.eval()
    assert norm() == 7


def test_weights_that_cancel_have_a_norm_of_zero_and_no_other():
    layer = Layer()
    with torch.no_grad():
        layer.lora_A["one"].weight.zero_()
        layer.base_layer.weight.zero_()
    assert weight_norm(layer, "one", torch.bfloat16).tolist() == [0] * OUTPUTS
    assert weight_norm(layer, "one", torch.bfloat16).dtype == torch.float32


def test_who_still_needs_what_was_written_over_is_told():
    product = torch.ones(2, 3, requires_grad=True) * 1
    needed = product.square()
    scaled = dora.ScaledOutputs.apply(product, torch.tensor([1.0, 2.0, 3.0]))
    assert scaled.tolist() == [[1.0, 2.0, 3.0]] * 2
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (needed.sum() + scaled.sum()).backward()
