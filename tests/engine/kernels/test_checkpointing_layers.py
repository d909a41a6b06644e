"""Which layers are computed twice, and when the random state has to be kept for it."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from qlora_studio.engine.accelerator.cpu import CpuAccelerator
from qlora_studio.engine.kernels.checkpointing import checkpoint_layers, decoder_layers, draws_numbers
from qlora_studio.engine.kernels.offloading import Offloading


class Layer(GradientCheckpointingLayer):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3, bias=False)

    def forward(self, x):
        return self.linear(x).tanh()


class Model(nn.Module):
    """Three layers that write text, two of an encoder, and a list of something else."""

    def __init__(self, **config) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([Layer() for _ in range(5)])
        self.decoder = nn.Module()
        self.decoder.short = nn.ModuleList([Layer()])
        self.decoder.layers = nn.ModuleList([Layer() for _ in range(3)])
        self.decoder.others = nn.ModuleList([nn.Linear(1, 1) for _ in range(9)])
        self.decoder.none = nn.ModuleList()
        self.config = SimpleNamespace(**config)

    def get_decoder(self):
        return self.decoder

    def forward(self, x):
        for layer in self.decoder.layers:
            x = layer(x)
        return x


def test_the_decoder_s_layers_are_the_longest_list_that_can_be_checkpointed():
    model = Model()
    assert decoder_layers(model) == list(model.decoder.layers)
    assert decoder_layers(model.decoder) == list(model.decoder.layers)
    assert decoder_layers(nn.Linear(1, 1)) == []


@pytest.mark.parametrize("count", [0, 1, 3, 9])
@pytest.mark.parametrize("offload", [False, True])
def test_the_first_layers_are_computed_twice_and_the_gradient_is_the_same(count, offload):
    torch.manual_seed(0)
    model, x = Model().train(), torch.randn(2, 3, requires_grad=True)
    wanted = torch.autograd.grad(model(x).sum(), [x, *model.decoder.layers.parameters()])
    checkpoint_layers(model, count, Offloading(CpuAccelerator()) if offload else None)
    assert [layer.gradient_checkpointing for layer in model.decoder.layers] == [place < count for place in range(3)]
    assert not any(layer.gradient_checkpointing for layer in model.encoder)
    calls = []
    for layer in model.decoder.layers:
        layer.linear.register_forward_hook(lambda module, *_: calls.append(module))
    found = torch.autograd.grad(model(x).sum(), [x, *model.decoder.layers.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    assert len(calls) == 3 + min(count, 3)


def test_layers_are_told_how_their_inputs_are_kept():
    model = Model(dropout=0.0)
    checkpoint_layers(model, 1)
    here = model.decoder.layers[0]._gradient_checkpointing_func
    assert here.keywords == {"use_reentrant": False, "preserve_rng_state": False}
    checkpoint_layers(Model(dropout=0.5), 1)
    model.config.dropout = 0.5
    offloading = Offloading(CpuAccelerator())
    checkpoint_layers(model, 1, offloading)
    away = model.decoder.layers[0]._gradient_checkpointing_func
    assert isinstance(away, partial) and away.func == offloading.checkpoint
    assert away.args[0].keywords == {"use_reentrant": False, "preserve_rng_state": True}


@pytest.mark.parametrize(
    ("config", "module", "draws"),
    [
        ({}, None, False),
        ({"attention_dropout": 0.0, "hidden_size": 8}, None, False),
        ({"attention_dropout": 0.1}, None, True),
        ({"attn_pdrop": 0.1}, None, True),
        ({"dropout": 1}, None, False),
        ({}, nn.Dropout(0.1), True),
        ({}, nn.Dropout(0.0), False),
    ],
)
def test_numbers_are_drawn_where_there_is_dropout(config, module, draws):
    model = Model(**config)
    if module is not None:
        model.more = module
    assert draws_numbers(model) == draws
