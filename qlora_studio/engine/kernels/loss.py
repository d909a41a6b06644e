"""Cross-entropy of the next token without the whole logits: trained positions only, chunk by chunk.

A vocabulary of 150,000 makes the logits of 2,048 tokens larger than a 4-bit model of a billion weights. Here each
chunk's logits live only until its gradient with respect to the hidden states is known, in the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qlora_studio.core.example import IGNORED
from qlora_studio.core.micro_batches import filled

CHUNK = 256
"""Positions whose logits are held at once."""


class ChunkedCrossEntropy(torch.autograd.Function):
    """-log softmax(h·Wᵀ)[target] of each trained position; the head W is frozen and gets no gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, chunk: int) -> torch.Tensor:
        # hidden (positions, width), head (vocab, width), targets (positions,) without ignored ones
        count = hidden.shape[0]
        # A processor's libraries keep a plan for every new number of rows, and each micro-batch trains another number.
        there = filled(count) if hidden.device.type == "cpu" else count
        gradient = hidden.new_empty(there, hidden.shape[1]) if ctx.needs_input_grad[0] else None
        losses = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        for start in range(0, hidden.shape[0], chunk):
            rows = slice(start, start + chunk)
            missing = min(start + chunk, there) - min(start + chunk, count)
            logits = (add_rows(hidden[rows], missing) @ head.t()).float()  # (chunk, vocab)
            target = add_rows(targets[rows].unsqueeze(1), missing)
            # The log-sum-exp by hand and in place: torch's own keeps a second copy of the largest tensor of the step.
            top = logits.amax(dim=-1, keepdim=True)
            picked = logits.gather(1, target)
            mass = logits.sub_(top).exp_().sum(dim=-1, keepdim=True)
            losses[rows] = (mass.log() + top - picked).squeeze(1)[: len(losses[rows])]
            if gradient is not None:
                logits.div_(mass).scatter_add_(1, target, torch.full_like(target, -1, dtype=torch.float32))
                torch.mm(logits.to(hidden.dtype), head, out=gradient[start : start + len(logits)])
            del logits  # before the next chunk's are made
        if gradient is not None:
            ctx.save_for_backward(gradient[:count])
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors  # (positions, width)
        # Scaled here, not in the forward: fp16 gradients over the token count would underflow before loss scaling.
        return gradient * grads[0].to(gradient.dtype).unsqueeze(1), None, None, None


def add_rows(rows: torch.Tensor, missing: int) -> torch.Tensor:
    """Rows (n, width) with so many of zeros below."""
    return torch.nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows


@dataclass(frozen=True, slots=True)
class Targets:
    """Which tokens are trained, found on the host, so that the device is never asked."""

    places: torch.Tensor
    """(trained,) tokens of the batch, one after the other, whose next token is trained."""
    tokens: torch.Tensor
    """(trained,) these next tokens."""
    slots: torch.Tensor
    """(trained,) where the loss of each stands in a table of rows by trained tokens of a row."""
    table: tuple[int, int]

    def sent(self, send: Callable[[torch.Tensor], torch.Tensor]) -> Targets:
        """The same on another device."""
        return Targets(send(self.places), send(self.tokens), send(self.slots), self.table)


def find_targets(labels: Sequence[Sequence[int]], starts: Sequence[int]) -> Targets:
    """The targets of rows with these labels, IGNORED where nothing is trained, that begin at these tokens of a batch.

    The first token of a row is nobody's next.
    """
    trained = [[place for place, label in enumerate(row) if place and label != IGNORED] for row in labels]
    width = max(1, *(len(row) for row in trained))
    places = [start + place - 1 for start, row in zip(starts, trained, strict=True) for place in row]
    tokens = [row[place] for row, places_of in zip(labels, trained, strict=True) for place in places_of]
    slots = [index * width + number for index, row in enumerate(trained) for number in range(len(row))]
    first, second, third = (torch.tensor(numbers, dtype=torch.long) for numbers in (places, tokens, slots))
    return Targets(first, second, third, (len(labels), width))


def next_token_losses(hidden: torch.Tensor, head: torch.Tensor, targets: Targets, chunk: int = CHUNK) -> torch.Tensor:
    """Loss of each row in nats, fp32 (rows,), summed over its trained tokens; hidden is (batch, length, width)."""
    states = hidden.reshape(-1, hidden.shape[-1]).index_select(0, targets.places)  # (trained, width)
    cross_entropy: Callable[..., torch.Tensor] = ChunkedCrossEntropy.apply
    return sum_by_row(cross_entropy(states, head, targets.tokens, chunk), targets)


def sum_by_row(losses: torch.Tensor, targets: Targets) -> torch.Tensor:
    """The sum of each row's losses, (trained,) -> (rows,).

    Put into a table and summed along it: adding by index would sum in another order each time on a card.
    """
    rows, width = targets.table
    return losses.new_zeros(rows * width).index_copy(0, targets.slots, losses).view(rows, width).sum(dim=1)
