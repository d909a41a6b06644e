"""Grouped-query attention for devices whose fused kernels want as many key and value heads as query heads.

torch computes grouped queries (`enable_gqa`) in flash attention alone, which wants compute capability 8.0 and 16-bit
numbers. Elsewhere it falls to the kernel that holds a number for every pair of tokens (transformers issue 48633); with
keys and values repeated the memory-efficient one runs.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

REPEATED_HEADS = "sdpa_repeated_heads"
"""The name under which transformers knows this attention; with `sdpa` in it, it makes the same checks as for torch's."""
OWN_ATTENTION = ("falcon",)
"""Families with a table of attention classes of their own, which take no other name than torch's."""


def register_repeated_heads() -> None:
    """Tells transformers of this attention; again is harmless."""
    AttentionInterface.register(REPEATED_HEADS, attend_with_repeated_heads)
    AttentionMaskInterface.register(REPEATED_HEADS, sdpa_mask)


def attend_with_repeated_heads(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, **options: Any
) -> tuple[torch.Tensor, None]:
    """Attention of query (batch, heads, length, head_dim) over key and value (batch, kv_heads, length, head_dim).

    Returns (batch, length, heads, head_dim), and None for the weights, as transformers' attention functions do.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    ungrouped: Any = SimpleNamespace(is_causal=getattr(module, "is_causal", True))
    out, _ = sdpa_attention_forward(ungrouped, query, key, value, mask, **options)  # (batch, length, heads, head_dim)
    return out, None
