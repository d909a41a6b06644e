"""Attention over rows that lie side by side in one sequence: each looks at itself alone.

transformers would make a mask of every pair of tokens for that, or look through the batch for one. Registered without a
mask function, this attention is asked for none. On a card with flash attention all rows are one kernel; elsewhere each
row is one of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from qlora_studio.core.micro_batches import filled
from qlora_studio.engine.kernels.attention import attend_one_query
from qlora_studio.engine.kernels.short_rows import row_gradients, suits

DOCUMENTS = "sdpa_documents"
"""The name under which transformers knows this attention; with `sdpa` in it, it makes the same checks as for torch's."""
aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Documents:
    """Where each row of a packed micro-batch lies."""

    spans: tuple[tuple[int, int], ...]
    """First token of each row and the one behind its last."""
    starts: torch.Tensor | None = None
    """(rows + 1,) int32 on the device: where flash attention is to cut, the padding as a row of its own."""
    longest: int = 0
    repeats: bool = False
    """Whether keys and values are repeated for every head: no kernel of this device groups queries."""
    windows: list[int | None] = field(default_factory=list)
    """What window each layer asked for, in order."""


def register_documents() -> None:
    """Tells transformers of this attention; again is harmless."""
    AttentionInterface.register(DOCUMENTS, attend_documents)


def attend_documents(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    documents: Documents | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of query (1, heads, tokens, head_dim) over key and value (1, kv_heads, tokens, head_dim), by row.

    Returns (1, tokens, heads, head_dim), and None for the weights, as transformers' attention functions do. Without
    `documents` the rows of a batch are whole and padded on the right, or one token goes on where a cache ended. Raises a
    ValueError for a mask that a model has made by itself.
    """
    if attention_mask is not None and query.shape[2] > 1:  # transformers makes none for this attention
        raise ValueError("its layers make masks of their own")
    if documents is None:
        mask = local_mask(query.shape[2], sliding_window, query) if query.shape[2] > 1 else attention_mask
        attend: Any = attend_one_query if query.device.type == "cpu" else sdpa_attention_forward
        whole: tuple[torch.Tensor, None] = attend(module, query, key, value, mask, scaling=scaling, **options)
        return whole
    documents.windows.append(sliding_window)
    if documents.starts is not None:
        q, k, v = (part.transpose(1, 2).squeeze(0) for part in (query, key, value))  # (tokens, heads, head_dim)
        q = q.contiguous()  # the kernel's result lies in memory as q does, and the next product would copy it
        window = (-1 if sliding_window is None else sliding_window - 1, 0)
        starts, longest = documents.starts, documents.longest
        grouped = k.shape[1] < q.shape[1]
        cut: Any = varlen_attn
        by_kernel: torch.Tensor = cut(
            q, k, v, starts, starts, longest, longest, scale=scaling, window_size=window, enable_gqa=grouped
        )
        return by_kernel.unsqueeze(0), None
    if documents.repeats:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if query.device.type == "cpu":
        by_row: Callable[..., torch.Tensor] = ProcessorAttention.apply
        return by_row(query, key, value, documents.spans, scaling, sliding_window).transpose(1, 2), None
    return attend_rows((query, key, value), documents.spans, scaling, sliding_window), None


def attend_rows(
    parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    spans: tuple[tuple[int, int], ...],
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    """Causal attention of query, key and value, one call of torch's kernel a row; zeros behind the last.

    Returns (1, tokens, heads, head_dim).
    """
    query, key, value = parts
    grouped, whole = query.shape[1] != key.shape[1], []
    for start, end in spans:
        q, k, v = (part[:, :, start:end] for part in parts)
        local = local_mask(end - start, window, query)
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=local, is_causal=local is None, scale=scale, enable_gqa=grouped
        )
        whole.append(out.transpose(1, 2))  # in memory as the next product wants it
    if (rest := query.shape[2] - spans[-1][1]) > 0:
        whole.append(query.new_zeros(1, rest, query.shape[1], value.shape[-1]))
    return whole[0] if len(whole) == 1 else torch.cat(whole, dim=1)


def local_mask(length: int, window: int | None, like: torch.Tensor) -> torch.Tensor | None:
    """What a row looks at, (length, length) in the dtype of `like`, where it is longer than the window; else None."""
    if window is None or length <= window:
        return None
    # In place: a mask of a long row is as large as a layer, and comparing distances would take seven times as much.
    mask = torch.full((length, length), float("-inf"), dtype=like.dtype, device=like.device)
    mask[:window, :window].triu_(1)
    mask.as_strided((length - window, window), (length + 1, 1), window * length + 1).zero_()
    return mask


class ProcessorAttention(torch.autograd.Function):
    """torch's own kernel for processors, row by row into one tensor; pieces put together would be kept twice.

    The kernel makes and keeps code for every length of a row, so each is filled up to a multiple of GRAIN with what lies
    behind it: causal attention never looks right, and what the filling itself computes is dropped.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        spans: tuple[tuple[int, int], ...],
        scale: float | None,
        window: int | None,
    ) -> torch.Tensor:
        heads, tokens, width = query.shape[1:]
        out = query.new_zeros(1, tokens, heads, width).transpose(1, 2)  # in memory as the next product wants it
        sums = []
        for start, end in spans:
            mask = local_mask(filled(end - start), window, query)
            parts = (filled_row(part, start, end) for part in (query, key, value))
            piece, logsumexp = aten._scaled_dot_product_flash_attention_for_cpu(
                *parts, 0.0, mask is None, attn_mask=mask, scale=scale
            )
            out[:, :, start:end] = piece[:, :, : end - start]
            sums.append(logsumexp)
        ctx.save_for_backward(query, key, value, out, *sums)
        ctx.spans, ctx.scale, ctx.window = spans, scale, window
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, *sums = ctx.saved_tensors

        def row(start: int, end: int, logsumexp: torch.Tensor) -> tuple[torch.Tensor, ...]:
            length = filled(end - start)
            mask = local_mask(length, ctx.window, query)
            gradient = grads[0][:, :, start:end]
            if length > end - start:  # `pad` copies also where there is nothing to fill
                gradient = F.pad(gradient, (0, 0, 0, length - end + start))
            q, k, v, result = (filled_row(part, start, end) for part in (query, key, value, out))
            if mask is None and suits(query, end - start):
                scale = ctx.scale if ctx.scale is not None else query.shape[-1] ** -0.5
                pieces = row_gradients(gradient[0], (q[0], k[0], v[0]), result[0], logsumexp[0], scale)
                return tuple(piece.unsqueeze(0) for piece in pieces)
            found: tuple[torch.Tensor, ...] = aten._scaled_dot_product_flash_attention_for_cpu_backward(
                gradient, q, k, v, result, logsumexp, 0.0, mask is None, attn_mask=mask, scale=ctx.scale
            )
            return found

        if len(ctx.spans) == 1 and filled(ctx.spans[0][1]) == query.shape[2]:
            ((start, end),) = ctx.spans  # nothing to put together, which would be there twice
            return (*row(start, end, sums[0]), None, None, None)
        gradients = [torch.zeros_like(part) for part in (query, key, value)]
        for (start, end), logsumexp in zip(ctx.spans, sums, strict=True):
            for whole, piece in zip(gradients, row(start, end, logsumexp), strict=True):
                whole[:, :, start:end] = piece[:, :, : end - start]
        return (*gradients, None, None, None)


def filled_row(part: torch.Tensor, start: int, end: int) -> torch.Tensor:
    """A row of part (1, heads, tokens, head_dim) with what lies behind it, or zeros, up to a multiple of GRAIN."""
    length = filled(end - start)
    if start + length <= part.shape[2]:
        return part[:, :, start : start + length]
    return F.pad(part[:, :, start:end], (0, 0, 0, length - end + start))
