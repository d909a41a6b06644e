"""Which LoRA layers run on this forward, what is said of those that do not, and its gradients by the formula."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from qlora_studio.engine.kernels.dora import dora_forward
from qlora_studio.engine.kernels.dropout import RowDropout
from qlora_studio.engine.kernels.lora import find_hindrance, lora_forward, replace_lora_forwards, report_slow_layers


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 5), nn.Linear(5, 4, bias=False)
        self.words = nn.Embedding(9, 6)

    def forward(self, x):
        return self.two(self.one(x))


def adapted(**options) -> nn.Module:
    torch.manual_seed(0)
    settings = {"r": 2, "lora_alpha": 6, "target_modules": ["one", "two"], "init_lora_weights": False} | options
    return get_peft_model(Net(), LoraConfig(**settings))


def layers_of(model):
    return [model.base_model.model.one, model.base_model.model.two]


def test_every_plain_layer_gets_this_forward_and_its_own_number_for_dropout():
    model = adapted(lora_dropout=0.25)
    assert replace_lora_forwards(model) == 2 and report_slow_layers(model) is None
    drops = [layer.lora_dropout["default"] for layer in layers_of(model)]
    assert [(type(one), one.p, one.layer) for one in drops] == [(RowDropout, 0.25, 0), (RowDropout, 0.25, 1)]
    assert drops[0].row_seeds is drops[1].row_seeds
    assert [layer.forward.__func__ for layer in layers_of(model)] == [lora_forward, lora_forward]
    dora = adapted(use_dora=True)
    assert replace_lora_forwards(dora) == 2
    assert [layer.forward.__func__ for layer in layers_of(dora)] == [dora_forward, dora_forward]
    assert all(isinstance(layer.lora_dropout["default"], nn.Identity) for layer in layers_of(dora))


@pytest.mark.parametrize("shape", [(6,), (9, 6), (2, 5, 6)])
def test_outputs_and_gradients_are_w_x_and_the_scaled_update(shape):
    model = adapted()
    replace_lora_forwards(model)
    layer, x = layers_of(model)[0], torch.randn(shape)
    leaf, again = x.clone().requires_grad_(), x.clone().requires_grad_()
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    found, wanted = layer(leaf), layer.base_layer(again) + 3 * (again @ a.t() @ b.t())
    upstream = torch.randn_like(wanted)
    torch.testing.assert_close(found, wanted)
    for one, other in zip(
        torch.autograd.grad(found, [leaf, a, b], upstream), torch.autograd.grad(wanted, [again, a, b], upstream), strict=True
    ):  # fmt: skip
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), wanted)
    layer.enable_adapters(False)
    assert torch.equal(layer(x), layer.base_layer(x))


@pytest.mark.parametrize(
    ("options", "reason", "slow"),
    [
        ({}, None, 0),
        ({"use_dora": True}, None, 0),
        ({"target_modules": ["one", "words"]}, "it adapts a Embedding", 1),
        ({"lora_bias": True, "target_modules": ["one"]}, "its adapter has a bias", 1),
    ],
)
def test_what_keeps_peft_s_own_forward_is_counted_with_its_reason(options, reason, slow):
    model = adapted(**options)
    found = [find_hindrance(module) for module in model.modules() if hasattr(module, "lora_A")]
    assert sorted(filter(None, found)) == [reason] * slow
    assert replace_lora_forwards(model) == len(found) - slow
    listed = f"{slow} of {len(found)} adapted layers run on PEFT's own forward, slower and with more memory: {slow} because {reason}."
    assert report_slow_layers(model) == (listed if slow else None)


def test_several_adapters_go_together_but_for_dora():
    model = adapted()
    model.add_adapter("other", LoraConfig(r=2, target_modules=["one", "two"]))
    assert {find_hindrance(layer) for layer in layers_of(model)} == {None}
    dora = adapted(use_dora=True)
    dora.add_adapter("other", LoraConfig(r=2, target_modules=["one", "two"], use_dora=True))
    assert {find_hindrance(layer) for layer in layers_of(dora)} == {"it has several adapters with DoRA"}


def test_a_variant_of_lora_that_is_not_dora_keeps_peft_s_own_forward():
    (layer, *_) = layers_of(adapted())
    layer.lora_variant["default"] = SimpleNamespace()
    assert find_hindrance(layer) == "it is a variant of LoRA (SimpleNamespace)"
