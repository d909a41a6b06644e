"""Cross-entropy of the next token without the whole logits: trained positions only, chunk by chunk.

A vocabulary of 150,000 makes the logits of 2,048 tokens larger than a 4-bit model of a billion weights. Here each
chunk's logits live only until its gradient with respect to the hidden states is known, in the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from qlora_studio.core.example import IGNORED

CHUNK = 256
"""Positions whose logits are held at once."""


class ChunkedCrossEntropy(torch.autograd.Function):
    """-log softmax(h·Wᵀ)[target] of each trained position; the head W is frozen and gets no gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, chunk: int) -> torch.Tensor:
        # hidden (positions, width), head (vocab, width), targets (positions,) without ignored ones
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        losses = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        for start in range(0, hidden.shape[0], chunk):
            rows = slice(start, start + chunk)
            logits = (hidden[rows] @ head.t()).float()  # (chunk, vocab)
            target = targets[rows].unsqueeze(1)
            # The log-sum-exp by hand and in place: torch's own keeps a second copy of the largest tensor of the step.
            top = logits.amax(dim=-1, keepdim=True)
            picked = logits.gather(1, target)
            mass = logits.sub_(top).exp_().sum(dim=-1, keepdim=True)
            losses[rows] = (mass.log() + top - picked).squeeze(1)
            if gradient is not None:
                logits.div_(mass).scatter_add_(1, target, torch.full_like(target, -1, dtype=torch.float32))
                torch.mm(logits.to(hidden.dtype), head, out=gradient[rows])
            del logits  # before the next chunk's are made
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors  # (positions, width)
        # Scaled here, not in the forward: fp16 gradients over the token count would underflow before loss scaling.
        return gradient * grads[0].to(gradient.dtype).unsqueeze(1), None, None, None


def next_token_losses(
    hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor, chunk: int = CHUNK
) -> torch.Tensor:
    """Loss of each row in nats, fp32 (batch,), summed over its trained positions.

    hidden is (batch, length, width), labels (batch, length).
    """
    targets = labels[:, 1:].reshape(-1)
    trained = (targets != IGNORED).nonzero().squeeze(1)
    states = hidden[:, :-1].reshape(-1, hidden.shape[-1]).index_select(0, trained)  # (trained, width)
    cross_entropy: Callable[..., torch.Tensor] = ChunkedCrossEntropy.apply
    losses = cross_entropy(states, head, targets.index_select(0, trained), chunk)
    # Put back and summed along the row: adding by index would sum in another order each time on a card.
    return losses.new_zeros(targets.shape).index_copy(0, trained, losses).view(len(labels), -1).sum(dim=1)
