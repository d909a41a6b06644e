"""The backward pass of causal attention over one short row on a processor, by matrix products over blocks of queries.

torch's own kernel for processors works through small tiles one after the other: on rows of 80 tokens that took a fifth of
a training step. Batched products over all heads at once take a third to three quarters of its time up to 512 tokens, and
more beyond, where what they hold no longer fits into the caches (`docs/speed.md`).
"""

from __future__ import annotations

from functools import lru_cache

import torch

SHORTEST, LONGEST = 16, 512
"""Tokens of a row between which this is faster than torch's kernel, in bf16; in fp32 that one is."""
BLOCK, WHOLE = 64, 96
"""Queries of a block; a row of no more than WHOLE is one."""

Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def suits(query: torch.Tensor, length: int) -> bool:
    """Whether a row of so many tokens goes backward faster here."""
    return query.dtype == torch.bfloat16 and SHORTEST <= length <= LONGEST


def row_gradients(
    gradient: torch.Tensor, inputs: Gradients, out: torch.Tensor, logsumexp: torch.Tensor, scale: float
) -> Gradients:
    """The gradients of query, key and value, the `inputs`, (heads, length, width), kv heads for the last two.

    Scores are made again in fp32 and normalised by the forward pass's `logsumexp` (heads, length); `out` is its result.
    """
    query, key, value = inputs
    heads, length, width = query.shape
    kv_heads, dtype = len(key), query.dtype
    step = length if length <= WHOLE else BLOCK
    delta = torch.linalg.vecdot(gradient.float(), out.float()).unsqueeze(-1)  # (heads, length, 1)
    columns, values = key.float().transpose(1, 2), value.transpose(1, 2)  # (kv_heads, width, length)
    dq = torch.empty_like(query)
    dk, dv = (torch.zeros(kv_heads, length, width, dtype=torch.float32, device=query.device) for _ in range(2))
    for start in range(0, length, step):
        end = min(length, start + step)
        rows, seen = (kv_heads, -1, width), slice(0, end)
        q, g = (
            query[:, start:end].reshape(rows),
            gradient[:, start:end].reshape(rows),
        )  # (kv_heads, groups·block, width)
        scores = torch.bmm(q.float() * scale, columns[:, :, seen]).view(heads, -1, end)
        weights = scores.sub_(logsumexp[:, start:end].unsqueeze(-1)).exp_()  # (heads, block, end)
        weights[:, :, start:].mul_(lower_triangle(end - start))
        rounded = weights.to(dtype).view(kv_heads, -1, end)
        dv[:, seen] += torch.bmm(rounded.transpose(1, 2), g)
        inside = torch.bmm(g, values[:, :, seen]).view(heads, -1, end).to(torch.float32, copy=True)
        d_scores = weights.mul_(inside.sub_(delta[:, start:end])).mul_(scale).to(dtype).view(kv_heads, -1, end)
        dq[:, start:end] = torch.bmm(d_scores, key[:, seen]).view(heads, -1, width)
        dk[:, seen] += torch.bmm(d_scores.transpose(1, 2), q)
    return dq, dk.to(dtype), dv.to(dtype)


@lru_cache(maxsize=128)
def lower_triangle(length: int) -> torch.Tensor:
    """Ones where a query looks at a key, (length, length) fp32; kept, because rows have the same few lengths."""
    return torch.ones(length, length).tril_()
