"""Which attention kernels run on a device: tried, not read from a list of cards."""

from __future__ import annotations

import warnings

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "plain": SDPBackend.MATH,
}

VARLEN_CAPABILITY = (8, 0)
"""Ampere: the first cards for which torch's flash attention cuts a sequence into rows itself (torch.nn.attention.varlen)."""


def find_kernels(device: torch.device, dtype: torch.dtype, *, grouped: bool) -> tuple[str, ...]:
    """The names of the kernels that compute causal attention on this device in this dtype.

    `grouped`: with two query heads for each head of keys and values.
    """
    q = torch.zeros(1, 4, 16, 64, dtype=dtype, device=device)  # (batch, heads, length, head_dim)
    kv = q[:, :2] if grouped else q
    return tuple(name for name, backend in KERNELS.items() if _runs(q, kv, backend))


def has_fused(kernels: tuple[str, ...]) -> bool:
    """Whether any of these kernels does without a number for every pair of tokens."""
    return any(name != "plain" for name in kernels)


def has_varlen(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether torch's flash attention, which cuts rows itself, runs here for heads of this width."""
    if device.type != "cuda" or dtype == torch.float32 or head_dim > 256 or head_dim % 8:
        return False
    able = torch.cuda.get_device_capability(device) >= VARLEN_CAPABILITY
    return able and torch.backends.cuda.is_flash_attention_available()


def _runs(q: torch.Tensor, kv: torch.Tensor, backend: SDPBackend) -> bool:
    try:
        with warnings.catch_warnings(), sdpa_kernel([backend]):
            warnings.simplefilter("ignore")
            scaled_dot_product_attention(q, kv, kv, is_causal=True, enable_gqa=kv.shape != q.shape)
    except RuntimeError:
        return False
    return True
