"""Which modules are taken for gated MLPs, what they are given, and what is said of those that keep their own way."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from qlora_studio.engine.kernels.gated_mlp import ACTIVATIONS
from qlora_studio.engine.kernels.replace import (
    can_tile,
    find_activation,
    replace_gated_mlps,
    report_slow_paths,
    tile_mlps,
)
from qlora_studio.engine.stand_ins import without_numbers
from tests.engine.kernels.test_linear import drop, layer

WIDTH, INNER = 4, 6


class Split(nn.Module):
    """The usual gated MLP."""

    def __init__(self, act="silu", **layers) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(WIDTH, INNER, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(INNER, WIDTH, bias=False)
        self.act_fn = ACT2FN[act] if isinstance(act, str) else act
        for name, one in layers.items():
            setattr(self, name, one)

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Fused(nn.Module):
    """Gate and up side by side in one layer, as Phi-3 has them; the activation under its other name."""

    def __init__(self, act="silu") -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = nn.Linear(WIDTH, 2 * INNER, bias=False), nn.Linear(INNER, WIDTH, bias=False)
        self.activation_fn = ACT2FN[act]

    def forward(self, x):
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(up * self.activation_fn(gate))


class Swapped(Split):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.up_proj(x)) * self.gate_proj(x))


class Added(Split):
    def forward(self, x):
        return super().forward(x) + 0.01


class Paired(Split):
    def forward(self, x):
        return super().forward(x), x


class Greedy(Split):
    def forward(self, x, mask):
        return super().forward(x)


class Ungated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up_proj, self.down_proj, self.act_fn = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH), nn.SiLU()

    def forward(self, x):
        return self.down_proj(self.act_fn(self.up_proj(x)))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (Split(), "silu"),
        (Split("gelu_pytorch_tanh"), "gelu_tanh"),
        (Split("gelu"), "gelu"),
        (Split("relu"), None),
        (Fused(), "silu"),
        (Fused("gelu"), "gelu"),
        (Swapped(), None),
        (Added(), None),
        (Paired(), None),
        (Greedy(), None),
        (Ungated(), None),
        (Split(act=None), None),
        (nn.Linear(2, 2), None),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_an_activation_is_found_by_what_the_class_computes(module, name):
    found = find_activation(module)
    assert (found and found.name) == name
    with without_numbers():
        inside = find_activation(module)
    assert inside is found and (found is None or found in ACTIVATIONS)


def test_every_gated_mlp_gets_the_kernel_and_only_in_training_and_while_it_is_plain():
    model = nn.ModuleList([Split(), Fused("gelu"), Swapped(), Ungated()])
    calls = []

    def kernel(x, parts, *, tiled):
        calls.append((parts, tiled))
        return x + 1

    assert replace_gated_mlps(model, kernel) == 2
    x = torch.randn(3, WIDTH)
    assert torch.equal(model[0](x), x + 1) and torch.equal(model[1](x), x + 1)
    (split, tiled), (fused, _) = calls
    assert [product.base for product in split.first] == [model[0].gate_proj, model[0].up_proj]
    assert (split.down.base, split.activation.name, tiled) == (model[0].down_proj, "silu", False)
    assert [product.base for product in fused.first] == [model[1].gate_up_proj] and fused.activation.name == "gelu"
    assert torch.equal(model[2](x), Swapped.forward(model[2], x)) and len(calls) == 2
    with torch.no_grad():
        assert torch.equal(model[0](x), Split.forward(model[0], x))
    tile_mlps(model, True)
    assert [module.tiled for module in (model[0], model[1])] == [True, True] and not hasattr(model[2], "tiled")
    model[0](x)
    assert calls[-1][1] is True
    tile_mlps(model, False)
    model[0](x)
    assert calls[-1][1] is False and len(calls) == 4


class Adapted(nn.Module):
    """A linear layer with what these functions ask of PEFT's, as a module."""

    def __init__(self, inputs, outputs, **changes) -> None:
        super().__init__()
        for name, value in vars(layer(nn.Linear(inputs, outputs, bias=False), **changes)).items():
            setattr(self, name, value)

    def forward(self, x):
        return self.base_layer(x)


def test_a_layer_that_is_more_than_a_product_has_the_module_s_own_forward_and_dropout_no_tiles():
    model = nn.ModuleList([Split(), Split(), Split()])
    calls = []
    assert replace_gated_mlps(model, lambda x, parts, *, tiled: calls.append(tiled) or x) == 3
    model[0].up_proj = Adapted(WIDTH, INNER, lora_variant={"one": "dora"})
    model[1].up_proj = Adapted(WIDTH, INNER, dropout=drop())
    tile_mlps(model, True)
    x = torch.randn(3, WIDTH)
    assert torch.equal(model[0](x), Split.forward(model[0], x)) and calls == []
    model[1](x)
    model[2](x)
    assert calls == [False, True]


@pytest.mark.parametrize(
    ("layers", "possible"),
    [
        ([{}], True),
        ([{"lora_variant": {"one": "dora"}}], False),
        ([{"dropout": drop()}], False),
        ([{"dropout": drop()}, {}], True),
        ([], False),
    ],
    ids=["plain", "DoRA", "dropout", "one of two", "none"],
)
def test_tiles_are_possible_where_any_mlp_is_plain(layers, possible):
    model = nn.ModuleList([Split() for _ in layers] + [nn.Linear(2, 2)])
    replace_gated_mlps(model)
    for module, changes in zip(model, layers, strict=False):
        module.up_proj = Adapted(WIDTH, INNER, **changes)
    assert can_tile(model) == possible


class Tiled(nn.Module):
    """Has tiles of its own, and is no gated MLP."""

    tiled = False
    down_proj = None


def test_what_runs_slower_is_said_with_each_reason_once():
    model = nn.ModuleList([Split(), Split(), Tiled(), Ungated()])
    assert report_slow_paths(model) is None
    replace_gated_mlps(model)
    assert report_slow_paths(model) is None
    tile_mlps(model, True)
    assert model[2].tiled is False
    model[0].up_proj, model[1].up_proj = (Adapted(WIDTH, INNER, lora_variant={"one": "dora"}) for _ in range(2))
    assert report_slow_paths(model) == "Gated MLPs keep more, because their layers have DoRA."
    model[1].down_proj = Adapted(INNER, WIDTH, merged=True)
    assert report_slow_paths(model) == "Gated MLPs keep more, because their layers have DoRA and several adapters."
