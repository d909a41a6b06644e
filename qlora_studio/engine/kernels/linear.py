"""A frozen linear layer with its adapter as plain arithmetic, for kernels that write their own backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn

from qlora_studio.engine.kernels.dropout import RowDropout


@dataclass(frozen=True, slots=True)
class AdaptedProduct:
    """`y = W·x + scale·B·A·d(x)` for rows x (tokens, in) -> y (tokens, out); W is frozen, A and B may be missing.

    d leaves numbers out at random where there is dropout. What it leaves out follows from the rows' seeds, so it is drawn
    again in the backward pass and nothing is kept for it.
    """

    base: Any
    a: torch.Tensor | None = None
    """(rank, in), in the adapter's own format."""
    b: torch.Tensor | None = None
    """(out, rank)"""
    scale: float = 0.0
    dropout: RowDropout | None = None

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The product of all rows, and d(x)·Aᵀ (tokens, rank) where there is an adapter."""
        out: torch.Tensor = self.base(x)
        if self.a is None or self.b is None:
            return out, None
        inner = self.thin_out(x, self.mask(x)) @ self.a.to(x.dtype).t()
        return out.addmm_(inner, self.b.to(x.dtype).t(), alpha=self.scale), inner

    def mask(self, x: torch.Tensor) -> torch.Tensor | None:
        """What dropout leaves of all rows x, (tokens, in) of True and False; None without dropout."""
        return None if self.dropout is None else self.dropout.mask(x)

    def thin_out(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """d(x) for rows and their part of the mask."""
        return x if mask is None else self.thin_out_(x.clone(), mask)

    def thin_out_(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """The same in place of x; also the gradient of x from that of d(x)."""
        return x if mask is None or self.dropout is None else x.mul_(mask).mul_(1 / (1 - self.dropout.p))

    def of_dense(self, x: torch.Tensor, weight: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """The product where W is there already as `weight`, for rows, which are used up, and their part of the mask."""
        bias = getattr(self.base, "bias", None)
        out = torch.nn.functional.linear(x, weight, None if bias is None else bias.to(x.dtype))
        if self.a is None or self.b is None:
            return out
        inner = self.thin_out_(x, mask) @ self.a.to(x.dtype).t()
        return out.addmm_(inner, self.b.to(x.dtype).t(), alpha=self.scale)

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """W (out, in), dequantised where it is in four bits."""
        return dense_weight(self.base, dtype)

    def low_rank_gradient(self, gradient: torch.Tensor) -> torch.Tensor | None:
        """The gradient of d(x)·Aᵀ, (tokens, rank)."""
        return None if self.b is None else (gradient @ self.b.to(gradient.dtype)).mul_(self.scale)

    def input_gradient(
        self,
        gradient: torch.Tensor,
        low_rank: torch.Tensor | None,
        weight: torch.Tensor,
        into: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The gradient of x (tokens, in), added to `into` where that is given."""
        dx = torch.mm(gradient, weight) if into is None else into.addmm_(gradient, weight)
        if self.a is None or low_rank is None:
            return dx
        if mask is None:
            return dx.addmm_(low_rank, self.a.to(gradient.dtype))
        return dx.add_(self.thin_out_(low_rank @ self.a.to(gradient.dtype), mask))


def as_product(layer: Any) -> AdaptedProduct | None:
    """A layer as plain arithmetic; None where it is more than that, or dropout without seeds to draw it from again."""
    base = getattr(layer, "base_layer", layer)
    if find_more(layer) is not None:
        return None
    names = (
        [] if base is layer or layer.disable_adapters else [one for one in layer.active_adapters if one in layer.lora_A]
    )
    if not names:
        return AdaptedProduct(base)
    (name,) = names
    a, b, dropout = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.lora_dropout[name]
    if isinstance(dropout, nn.Identity) or not dropout.training:
        return AdaptedProduct(base, a, b, layer.scaling[name])
    return AdaptedProduct(base, a, b, layer.scaling[name], dropout) if dropout.is_drawn_again else None


def find_more(layer: Any) -> str | None:
    """What makes a layer more than a product with a plain adapter, in a word or two; None where nothing does."""
    base = getattr(layer, "base_layer", layer)
    if not is_plain(base):
        return "a kind of their own"
    if base is layer or layer.disable_adapters:
        return None
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(names) > 1 or getattr(layer, "merged", False):
        return "several adapters"
    if getattr(layer, "lora_variant", None):
        return "DoRA"
    if any(layer.lora_B[name].bias is not None for name in names):
        return "an adapter with a bias"
    if any(not isinstance(layer.lora_dropout[name], nn.Identity | RowDropout) for name in names):
        return "dropout from one stream"
    return None


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
