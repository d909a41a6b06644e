"""The LoRA layer's forward: the update is added in place to the base's output, and no activation is cast up.

PEFT's own forward clones the base's output and, with fp32 adapters, keeps an fp32 copy of every layer's input. This
one saves the input as it is and `x·Aᵀ`, all that the gradient needs. The adapter stays PEFT's: names, shapes, files.
"""

from __future__ import annotations

import types
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import nn

from qlora_studio.engine.kernels.dropout import RowDropout, RowSeeds

FEW_ROWS = 8
"""Tokens up to which products with an adapter are too small for bf16 on a processor: in fp32 answers of a small model come
1.4 times as fast (`benchmarks/chat_cpu.py`)."""


def lora_forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """`W·x + scale·B·A·x` for x (..., in) -> (..., out), in x's dtype. Hu et al. 2021, arXiv 2106.09685, eq. 3."""
    rows = x.reshape(-1, x.shape[-1])  # (tokens, in)
    out: torch.Tensor = layer.base_layer(rows)  # (tokens, out)
    for name in [] if layer.disable_adapters else layer.active_adapters:
        if len(rows) <= FEW_ROWS and not torch.is_grad_enabled():
            out = _add_few(layer, name, rows, out)
            continue
        a = layer.lora_A[name].weight.to(x.dtype)  # (rank, in)
        b = layer.lora_B[name].weight.to(x.dtype)  # (out, rank)
        inner = F.linear(layer.lora_dropout[name](rows), a)  # (tokens, rank)
        if torch.is_grad_enabled():
            # In place is safe: neither a 4-bit nor a dense linear layer saves its output for the backward pass.
            out = out.addmm_(inner, b.t(), alpha=layer.scaling[name])
        else:
            out = torch.addmm(out, inner, b.t(), alpha=layer.scaling[name])
    return out.view(*x.shape[:-1], out.shape[-1])


def _add_few(layer: Any, name: str, rows: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """The same sum in the adapter's own dtype, (tokens, out): no cast of the adapter for each token that is written."""
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight  # (rank, in), (out, rank)
    inner = F.linear(rows.to(a.dtype), a)  # (tokens, rank)
    return torch.addmm(out.to(b.dtype), inner, b.t(), alpha=layer.scaling[name]).to(out.dtype)


def replace_lora_forwards(model: nn.Module) -> int:
    """Gives every plain LoRA linear layer this forward and a dropout by row seeds; returns how many there are."""
    count, seeds = 0, RowSeeds()
    for module in model.modules():
        if isinstance(module, LoraLayer) and isinstance(module.get_base_layer(), nn.Linear) and not module.lora_variant:
            replaced: Any = module
            replaced.forward = types.MethodType(lora_forward, module)
            for name, dropout in module.lora_dropout.items():
                if isinstance(dropout, nn.Dropout):
                    module.lora_dropout[name] = RowDropout(dropout.p, count, seeds)
            count += 1
    return count
