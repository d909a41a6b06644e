"""A frozen linear layer with its adapter as plain arithmetic, for kernels that write their own backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class AdaptedProduct:
    """`y = W·x + scale·B·A·x` for rows x (tokens, in) -> y (tokens, out); W is frozen, A and B may be missing."""

    base: Any
    a: torch.Tensor | None = None
    """(rank, in), in the adapter's own format."""
    b: torch.Tensor | None = None
    """(out, rank)"""
    scale: float = 0.0

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The product, and x·Aᵀ (tokens, rank) where there is an adapter."""
        out: torch.Tensor = self.base(x)
        if self.a is None or self.b is None:
            return out, None
        inner = x @ self.a.to(x.dtype).t()
        return out.addmm_(inner, self.b.to(x.dtype).t(), alpha=self.scale), inner

    def of_dense(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The product where W is there already as `weight`."""
        bias = getattr(self.base, "bias", None)
        out = torch.nn.functional.linear(x, weight, None if bias is None else bias.to(x.dtype))
        if self.a is None or self.b is None:
            return out
        return out.addmm_(x @ self.a.to(x.dtype).t(), self.b.to(x.dtype).t(), alpha=self.scale)

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """W (out, in), dequantised where it is in four bits."""
        return dense_weight(self.base, dtype)

    def low_rank_gradient(self, gradient: torch.Tensor) -> torch.Tensor | None:
        """The gradient of x·Aᵀ, (tokens, rank)."""
        return None if self.b is None else (gradient @ self.b.to(gradient.dtype)).mul_(self.scale)

    def input_gradient(
        self,
        gradient: torch.Tensor,
        low_rank: torch.Tensor | None,
        weight: torch.Tensor,
        into: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The gradient of x (tokens, in), added to `into` where that is given."""
        dx = torch.mm(gradient, weight) if into is None else into.addmm_(gradient, weight)
        if self.a is not None and low_rank is not None:
            dx.addmm_(low_rank, self.a.to(gradient.dtype))
        return dx


def as_product(layer: Any) -> AdaptedProduct | None:
    """A layer as plain arithmetic; None where it is more than that.

    More are dropout, several adapters, one that is merged, a variant such as DoRA, and layers of a kind of their own.
    """
    base = getattr(layer, "base_layer", layer)
    if not is_plain(base):
        return None
    if base is layer or layer.disable_adapters:
        return AdaptedProduct(base)
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(names) > 1 or getattr(layer, "merged", False) or getattr(layer, "lora_variant", None):
        return None
    if not names:
        return AdaptedProduct(base)
    (name,) = names
    dropout, b = layer.lora_dropout[name], layer.lora_B[name]
    if not isinstance(dropout, nn.Identity) or b.bias is not None:
        return None
    return AdaptedProduct(base, layer.lora_A[name].weight, b.weight, layer.scaling[name])


def is_plain(base: Any) -> bool:
    """Whether this is a linear layer in the usual formats, or a dry run's stand-in for one."""
    return type(base) in (nn.Linear, bnb.nn.Linear4bit) or hasattr(base, "dense_weight")


def dense_weight(base: Any, dtype: torch.dtype) -> torch.Tensor:
    """The weight (out, in) of a linear layer in a number format, dequantised where it is in four bits."""
    if hasattr(base, "dense_weight"):
        stand_in: torch.Tensor = base.dense_weight(dtype)
        return stand_in
    state = getattr(base.weight, "quant_state", None)
    dense = base.weight if state is None else bnb.functional.dequantize_4bit(base.weight.data, state)
    whole: torch.Tensor = dense.to(dtype)
    return whole
