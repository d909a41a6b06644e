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


def _runs(q: torch.Tensor, kv: torch.Tensor, backend: SDPBackend) -> bool:
    try:
        with warnings.catch_warnings(), sdpa_kernel([backend]):
            warnings.simplefilter("ignore")
            scaled_dot_product_attention(q, kv, kv, is_causal=True, enable_gqa=kv.shape != q.shape)
    except RuntimeError:
        return False
    return True
