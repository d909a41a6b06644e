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


def find_kernels(device: torch.device, dtype: torch.dtype) -> tuple[str, ...]:
    """The names of the kernels that compute causal attention on this device in this dtype."""
    q = torch.zeros(1, 2, 16, 64, dtype=dtype, device=device)  # (batch, heads, length, head_dim)
    return tuple(name for name, backend in KERNELS.items() if _runs(q, backend))


def _runs(q: torch.Tensor, backend: SDPBackend) -> bool:
    try:
        with warnings.catch_warnings(), sdpa_kernel([backend]):
            warnings.simplefilter("ignore")
            scaled_dot_product_attention(q, q, q, is_causal=True)
    except RuntimeError:
        return False
    return True
