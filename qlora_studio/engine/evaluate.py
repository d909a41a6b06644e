"""Held-out loss: the objective over the whole evaluation set, the same for any micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from qlora_studio.core.example import Example, token_lengths
from qlora_studio.engine.forward import LossFunction
from qlora_studio.engine.ladder import Limits, MemoryLadder
from qlora_studio.engine.objectives.protocol import Objective, RowLosses

Advanced = Callable[[int, int], None]


def evaluate(
    objective: Objective,
    loss_function: LossFunction,
    examples: Sequence[Example],
    ladder: MemoryLadder,
    advanced: Advanced = lambda done, total: None,
) -> float:
    """The objective's loss over all examples, divided by its divisor for all of them.

    Out of memory, the rest of the set is cut smaller; what was computed is not computed again. Raises a StudioError
    where the longest row alone does not fit.
    """
    losses = row_losses(loss_function, examples, ladder, advanced)
    tokens = torch.tensor([float(example.trained_tokens) for example in examples])
    whole = objective.loss(RowLosses(tuple(range(len(examples))), losses, tokens))
    return float(whole.summed) / objective.divisor(examples)


@torch.no_grad()
def row_losses(
    loss_function: LossFunction,
    examples: Sequence[Example],
    ladder: MemoryLadder,
    advanced: Advanced = lambda done, total: None,
) -> torch.Tensor:
    """The loss of each example in nats, summed over its trained tokens; (examples,) fp32 on the CPU."""
    lengths, layout = token_lengths(examples), loss_function.layout
    losses = torch.zeros(len(examples), dtype=torch.float32)
    waiting = list(range(len(examples)))

    def work(limits: Limits) -> None:
        rows = list(waiting)
        for places in layout.cut(rows, lengths, limits.micro_batch_tokens):
            group = [rows[place] for place in places]
            losses[group] = loss_function.row_losses(layout.collate(examples, group)).cpu()
            for row in group:
                waiting.remove(row)
            advanced(len(examples) - len(waiting), len(examples))

    ladder.until_it_fits(work, max(lengths), backward=False)
    return losses
