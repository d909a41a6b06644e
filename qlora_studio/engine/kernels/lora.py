"""The LoRA layer's forward: the update is added in place to the base's output, and no activation is cast up.

PEFT's own forward clones the base's output and, with fp32 adapters, keeps an fp32 copy of every layer's input. This
one saves the input as it is and `x·Aᵀ`, all that the gradient needs. The adapter stays PEFT's: names, shapes, files.
"""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.variants import DoraLinearVariant
from torch import nn

from qlora_studio.engine.kernels.dora import dora_forward
from qlora_studio.engine.kernels.dropout import RowDropout, RowSeeds, ThinnedProduct

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
        inner = low_rank_product(layer.lora_dropout[name], rows, a)  # (tokens, rank)
        if torch.is_grad_enabled():
            # In place is safe: neither a 4-bit nor a dense linear layer saves its output for the backward pass.
            out = out.addmm_(inner, b.t(), alpha=layer.scaling[name])
        else:
            out = torch.addmm(out, inner, b.t(), alpha=layer.scaling[name])
    return out.view(*x.shape[:-1], out.shape[-1])


def low_rank_product(dropout: nn.Module, rows: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """`d(x)·Aᵀ` of rows (tokens, in) with A (rank, in), (tokens, rank)."""
    if isinstance(dropout, RowDropout) and dropout.is_drawn_again:
        thinned: Callable[..., torch.Tensor] = ThinnedProduct.apply
        return thinned(rows, a, dropout)
    return F.linear(dropout(rows), a)


def _add_few(layer: Any, name: str, rows: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """The same sum in the adapter's own dtype, (tokens, out): no cast of the adapter for each token that is written."""
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight  # (rank, in), (out, rank)
    inner = F.linear(rows.to(a.dtype), a)  # (tokens, rank)
    return torch.addmm(out.to(b.dtype), inner, b.t(), alpha=layer.scaling[name]).to(out.dtype)


def replace_lora_forwards(model: nn.Module) -> int:
    """Gives every LoRA linear layer that is known here its forward and a dropout by row seeds; returns how many."""
    count, seeds = 0, RowSeeds()
    for module in model.modules():
        if not isinstance(module, LoraLayer) or find_hindrance(module) is not None:
            continue
        replaced: Any = module
        replaced.forward = types.MethodType(dora_forward if module.lora_variant else lora_forward, module)
        for name, dropout in module.lora_dropout.items():
            if isinstance(dropout, nn.Dropout):
                module.lora_dropout[name] = RowDropout(dropout.p, count, seeds)
        count += 1
    return count


def find_hindrance(layer: LoraLayer) -> str | None:
    """Why a LoRA layer keeps the forward that PEFT gave it; None for one that is known here."""
    base = layer.get_base_layer()
    if not isinstance(base, nn.Linear):
        return f"it adapts a {type(base).__name__}"
    variants = [variant for variant in layer.lora_variant.values() if type(variant) is not DoraLinearVariant]
    if variants:
        return f"it is a variant of LoRA ({type(variants[0]).__name__})"
    if layer.lora_variant and len(layer.lora_A) > 1:
        return "it has several adapters with DoRA"
    if any(b.bias is not None for b in layer.lora_B.values()):
        return "its adapter has a bias"
    return None


def report_slow_layers(model: nn.Module) -> str | None:
    """How many layers run on PEFT's own forward and why, in a sentence; None where none does."""
    reasons = Counter(find_hindrance(module) for module in model.modules() if isinstance(module, LoraLayer))
    slow = sum(count for reason, count in reasons.items() if reason)
    if not slow:
        return None
    listed = "; ".join(f"{count} because {reason}" for reason, count in reasons.items() if reason)
    return f"{slow} of {sum(reasons.values())} adapted layers run on PEFT's own forward, slower and with more memory: {listed}."
