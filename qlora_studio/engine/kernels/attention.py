"""Attention where torch's own kernel does not suit: grouped queries on older cards, and one query on a processor.

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
ONE_QUERY = "sdpa_one_query"
"""The name of the attention that answers are written with on a processor."""
OWN_ATTENTION = ("falcon",)
"""Families with a table of attention classes of their own, which take no other name than torch's."""


def register_repeated_heads() -> None:
    """Tells transformers of this attention; again is harmless."""
    AttentionInterface.register(REPEATED_HEADS, attend_with_repeated_heads)
    AttentionMaskInterface.register(REPEATED_HEADS, sdpa_mask)


def attend_with_repeated_heads(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of query (batch, heads, length, head_dim) over key and value (batch, kv_heads, length, head_dim).

    Returns (batch, length, heads, head_dim), and None for the weights, as transformers' attention functions do.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    ungrouped: Any = SimpleNamespace(is_causal=getattr(module, "is_causal", True))
    out, _ = sdpa_attention_forward(ungrouped, query, key, value, attention_mask, **options)
    return out, None


def register_one_query() -> None:
    """Tells transformers of this attention; again is harmless."""
    AttentionInterface.register(ONE_QUERY, attend_one_query)
    AttentionMaskInterface.register(ONE_QUERY, sdpa_mask)


def attend_one_query(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """torch's attention, but for a single query, as each token of an answer is one.

    torch's kernel for processors takes 4 to 10 times as long for it at 300 keys, and 7 to 12 at 1,000, as two small products
    (measured 2026-11-21, bf16, one thread, 9 heads of 64 to 32 of 128).
    """
    by_head = attention_mask is not None and attention_mask.shape[1] != 1
    if query.shape[2] != 1 or torch.is_grad_enabled() or set(options) & UNKNOWN_HERE or by_head:
        out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return out, None
    scaling = query.shape[-1] ** -0.5 if options.get("scaling") is None else options["scaling"]
    return one_query(query, (key, value), scaling, attention_mask), None


UNKNOWN_HERE = {"s_aux", "softcap"}
"""Options of attention that change its result and are not computed here."""


def one_query(
    query: torch.Tensor, kept: tuple[torch.Tensor, torch.Tensor], scaling: float, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention of query (batch, heads, 1, width) over kept keys and values (batch, kv_heads, keys, width).

    `mask` (batch, 1, 1, keys) is False for what is not seen, or added to the scores, which are summed and normalised in
    fp32. Gives (batch, 1, heads, width).
    """
    key, value = kept
    batch, heads, _, width = query.shape
    grouped = query.reshape(batch, key.shape[1], -1, width)  # (batch, kv_heads, group, width)
    scores = torch.matmul(grouped.float(), key.float().transpose(-1, -2)).mul_(scaling)
    if mask is not None:
        scores = scores.masked_fill_(~mask, float("-inf")) if mask.dtype == torch.bool else scores.add_(mask)
    out = torch.matmul(scores.softmax(-1).to(value.dtype), value)  # (batch, kv_heads, group, value's width)
    return out.view(batch, 1, heads, value.shape[-1])


def layer_configs(config: Any) -> list[Any]:
    """What each layer of a text config is made by: one config for all, but where sizes differ from layer to layer (Gemma 4)."""
    return list(config.per_layer_config) if getattr(config, "is_heterogeneous", False) else [config]
