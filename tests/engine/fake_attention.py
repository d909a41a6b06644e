"""Which attention kernel a card chooses: torch 2.13's rules (aten/src/ATen/native/transformers/cuda/sdp_utils.cpp)."""

from __future__ import annotations

import torch

aten = torch.ops.aten
AMPERE = (8, 0)
LITTLE_SHARED_MEMORY = ((8, 6), (8, 9), (12, 0), (12, 1))
"""Capabilities whose flash cannot go backward at head dimensions of 193 to 224."""


def choose_kernel(
    capability: tuple[int, int],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[str, torch.Tensor]:
    """The kernel's name and what it gives for q (batch, heads, length, head_dim) and k, v of as many or fewer heads."""
    width, grouped = q.shape[-1], q.shape[1] != k.shape[1]
    backward = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)
    sixteen_bit = q.dtype in (torch.float16, torch.bfloat16)
    narrow = not (backward and capability in LITTLE_SHARED_MEMORY) or width <= 192 or width > 224
    flash = capability >= AMPERE and sixteen_bit and attn_mask is None and width <= 256 and narrow
    if flash and (not grouped or enable_gqa):
        out = aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal, scale=scale)
        return "flash", out[0]
    if not grouped and (capability >= AMPERE or q.dtype != torch.bfloat16):  # grouped queries: not before torch 2.14
        bias = _as_bias(attn_mask, q, k)
        out = aten._scaled_dot_product_efficient_attention(q, k, v, bias, backward, dropout_p, is_causal, scale=scale)
        return "memory-efficient", out[0]
    out = aten._scaled_dot_product_attention_math(
        q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )
    return "plain", out[0]


def _as_bias(mask: torch.Tensor | None, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor | None:
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, float("-inf"))
    return mask.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
