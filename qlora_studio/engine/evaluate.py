"""Held-out loss: a token-weighted mean that is the same for any batch size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from qlora_studio.core.example import Example, token_lengths
from qlora_studio.engine.batches import collate, micro_batches
from qlora_studio.engine.forward import LossFunction
from qlora_studio.engine.memory import release
from qlora_studio.engine.oom import is_out_of_memory


@torch.no_grad()
def held_out_loss(
    loss_function: LossFunction,
    examples: Sequence[Example],
    micro_batch_tokens: int,
    advanced: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[float, int]:
    """Mean loss in nats over all trained tokens of the examples, and their number.

    Out of memory, the set is cut smaller and the rows that failed are computed again; the training state is untouched.
    """
    lengths = token_lengths(examples)
    tokens = sum(example.trained_tokens for example in examples)
    total, done, device = 0.0, 0, loss_function.head.device
    waiting = micro_batches(range(len(examples)), lengths, micro_batch_tokens)
    while waiting:
        rows = waiting.pop(0)
        loss = None
        try:
            loss = float(loss_function(*collate([examples[row] for row in rows], device)))
        except Exception as error:
            if not is_out_of_memory(error) or len(rows) == 1:
                raise
        if loss is None:
            release()
            half = len(rows) // 2
            waiting[:0] = [rows[:half], rows[half:]]
            continue
        total += loss
        done += len(rows)
        advanced(done, len(examples))
    return total / max(1, tokens), tokens
