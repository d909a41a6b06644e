"""DoRA: the length of each output is learned apart from its direction.

`y = g · (W·x + scale·B·A·x)` with `g = m / |W + scale·B·A|` for each output, where m is learned and the norm counts as a
constant in the backward pass (Liu et al. 2024, arXiv 2402.09353, sections 4.1 and 4.3). PEFT multiplies B and A to a whole
matrix for the norm and keeps several copies of the output. Here the square of the norm is taken apart, `|W|² + 2·scale·
(W·Aᵀ)·B + scale²·(B·A·Aᵀ)·B`, so nothing wider than the rank is made, and of the output only itself is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from qlora_studio.engine.kernels.linear import dense_weight

ROWS_AT_ONCE = 256
"""Tokens of which the products for m's gradient are there at one moment."""


def dora_forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """The adapted product of x (..., in) -> (..., out), in x's dtype."""
    rows = x.reshape(-1, x.shape[-1])  # (tokens, in)
    names = [] if layer.disable_adapters else layer.active_adapters
    out: torch.Tensor = layer.base_layer(rows)  # (tokens, out)
    if not names:
        return out.view(*x.shape[:-1], out.shape[-1])
    (name,) = names
    bias = layer.base_layer.bias
    dropped = layer.lora_dropout[name](rows)
    directed = out if dropped is rows else layer.base_layer(dropped)
    directed = directed if bias is None else directed - bias
    a, b = layer.lora_A[name].weight.to(x.dtype), layer.lora_B[name].weight.to(x.dtype)
    product = torch.addmm(directed, F.linear(dropped, a), b.t(), alpha=layer.scaling[name])
    scale: Callable[..., torch.Tensor] = ScaledOutputs.apply
    scaled = scale(product, layer.lora_magnitude_vector[name].weight.float() / weight_norm(layer, name, x.dtype))
    if dropped is not rows:
        scaled = scaled + (out - (directed if bias is None else directed + bias))
    whole = scaled if bias is None else scaled + bias
    return whole.view(*x.shape[:-1], out.shape[-1])


class ScaledOutputs(torch.autograd.Function):
    """x (tokens, out) with each output times its factor (out,) in fp32, written over x; only the result is kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        torch.mul(x, factor, out=x)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x, factor)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scaled, factor = ctx.saved_tensors
        total = torch.zeros_like(factor)
        for gradient, part in zip(grads[0].split(ROWS_AT_ONCE), scaled.split(ROWS_AT_ONCE), strict=True):
            total += (gradient * part).sum(dim=0, dtype=torch.float32)
        nothing = factor == 0  # an output that is off by its factor alone would be divided by it
        return torch.mul(grads[0], factor, out=torch.empty_like(grads[0])), (total / factor).masked_fill_(nothing, 0)


@torch.no_grad()
def weight_norm(layer: Any, name: str, dtype: torch.dtype) -> torch.Tensor:
    """`|W + scale·B·A|` of each output, (out,) fp32, for W in `dtype`. While nothing is trained it is computed once."""
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    state = tuple((one.data_ptr(), 0 if one.is_inference() else one._version) for one in (a, b))
    kept = getattr(layer, "kept_norm", None)
    if kept is not None and not layer.training and kept[0] == state:
        known: torch.Tensor = kept[1]
        return known
    weight = dense_weight(layer.base_layer, dtype)  # (out, in)
    a32, b32, scale = a.float(), b.float(), layer.scaling[name]
    square = torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32).square_()
    square += 2 * scale * torch.linalg.vecdot((weight @ a.to(weight.dtype).t()).float(), b32)
    square += scale * scale * torch.linalg.vecdot(b32 @ (a32 @ a32.t()), b32)
    norm: torch.Tensor = square.clamp_(min=0).sqrt_()
    layer.kept_norm = None if layer.training else (state, norm)
    return norm
