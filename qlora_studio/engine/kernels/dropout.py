"""Dropout of adapter inputs from a seed per row and step, so that how a step is cut into micro-batches changes nothing.

Drawn from one stream, as usual, the numbers that a row gets depend on the rows computed before it and on its padding:
a step that is cut smaller after an out-of-memory would be another step. Here each row of each layer has a seed of its
own, so gradient checkpointing, a retry and a resumed run draw the same numbers without keeping any state.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
from torch import nn

from qlora_studio.engine.batches import MicroBatch


@dataclass
class RowSeeds:
    """The seeds in force, set before each forward pass and shared by all layers of a model."""

    seeds: tuple[str, ...] = ()
    """One for each row of the micro-batch; empty: dropout draws from torch's own stream."""
    spans: tuple[tuple[int, int], ...] = ()
    """Where each row lies among all tokens, without padding."""
    generators: dict[torch.device, torch.Generator] = field(default_factory=dict)

    def set(self, run: int, step: int, batch: MicroBatch) -> None:
        """Takes the seeds of a micro-batch's rows in this step of a run with this seed."""
        self.seeds = tuple(f"{run}:{step}:{row}" for row in batch.rows)
        self.spans = batch.spans

    def keep_mask(self, x: torch.Tensor, layer: int, share: float) -> torch.Tensor:
        """True with probability `share` for each number of x (tokens, width); padding is False."""
        generator = self.generators.get(x.device)
        if generator is None:
            generator = self.generators[x.device] = torch.Generator(x.device)
        mask = torch.zeros(x.shape, dtype=torch.bool, device=x.device)
        for seed, (start, end) in zip(self.seeds, self.spans, strict=True):
            digest = hashlib.blake2b(f"{seed}:{layer}".encode(), digest_size=7).digest()
            generator.manual_seed(int.from_bytes(digest, "little"))
            mask[start:end].bernoulli_(share, generator=generator)
        return mask


class RowDropout(nn.Dropout):
    """Dropout whose mask is drawn per row where the row seeds are set; torch's own dropout where they are not."""

    def __init__(self, p: float, layer: int, seeds: RowSeeds) -> None:
        super().__init__(p)
        self.layer = layer
        self.row_seeds = seeds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (tokens, width), the rows of a micro-batch one after the other."""
        if not self.training or not self.row_seeds.seeds:
            return super().forward(x)
        keep = 1 - self.p
        return (x * self.row_seeds.keep_mask(x, self.layer, keep)).mul_(1 / keep)


def find_row_seeds(model: nn.Module) -> RowSeeds | None:
    """The row seeds that the dropout layers of a model share; None where it has no dropout."""
    return next((module.row_seeds for module in model.modules() if isinstance(module, RowDropout)), None)
