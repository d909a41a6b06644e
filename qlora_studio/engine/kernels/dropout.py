"""Dropout of adapter inputs and noise on embeddings from a seed per row and step, so that how a step is cut into micro-batches changes nothing.

Drawn from one stream, as usual, the numbers that a row gets depend on the rows computed before it and on its padding:
a step that is cut smaller after an out-of-memory would be another step. Here each row of each layer has a seed of its
own, so gradient checkpointing, a retry and a resumed run draw the same numbers without keeping any state.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from qlora_studio.engine.batches import MicroBatch

DRAWN_AT_ONCE = 64
"""Tokens: on a processor torch draws whole numbers of four bytes first."""


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
        mask = torch.zeros(x.shape, dtype=torch.bool, device=x.device)
        for seed, (start, end) in zip(self.seeds, self.spans, strict=True):
            generator = self.generator(f"{seed}:{layer}", x.device)
            for part in mask[start:end].split(DRAWN_AT_ONCE):
                part.bernoulli_(share, generator=generator)
        return mask

    def generator(self, name: str, device: torch.device) -> torch.Generator:
        """The device's generator, at the beginning of the numbers that have this name."""
        found = self.generators.get(device)
        if found is None:
            found = self.generators[device] = torch.Generator(device)
        digest = hashlib.blake2b(name.encode(), digest_size=7).digest()
        return found.manual_seed(int.from_bytes(digest, "little"))


class RowDropout(nn.Dropout):
    """Dropout whose mask is drawn per row where the row seeds are set; torch's own dropout where they are not."""

    def __init__(self, p: float, layer: int, seeds: RowSeeds) -> None:
        super().__init__(p)
        self.layer = layer
        self.row_seeds = seeds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., width), the rows of a micro-batch one after the other."""
        if not self.is_drawn_again:
            return super().forward(x)
        rows = x.reshape(-1, x.shape[-1])
        thinned: torch.Tensor = (rows * self.mask(rows)).mul_(1 / (1 - self.p))
        return thinned.view_as(x)

    @property
    def is_drawn_again(self) -> bool:
        """Whether it leaves out numbers that follow from seeds."""
        return self.training and len(self.row_seeds.seeds) > 0

    def mask(self, rows: torch.Tensor) -> torch.Tensor:
        """What is left of these rows (tokens, width), the same whenever it is asked for the same rows and step."""
        return self.row_seeds.keep_mask(rows, self.layer, 1 - self.p)


class ThinnedProduct(torch.autograd.Function):
    """`d(x)·Aᵀ` for rows x (tokens, in) and A (rank, in) -> (tokens, rank), where d is dropout by row seeds.

    What was left out follows from the seeds, so it is drawn again in the backward pass: x is kept as without dropout.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, a: torch.Tensor, dropout: RowDropout) -> torch.Tensor:
        ctx.save_for_backward(x, a)
        ctx.dropout = dropout
        thinned: torch.Tensor = dropout(x)
        return thinned @ a.t()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor, None]:
        x, a = ctx.saved_tensors
        mask, share = ctx.dropout.mask(x), 1 / (1 - ctx.dropout.p)
        da = grads[0].t() @ (x * mask).mul_(share)
        dx = (grads[0] @ a).mul_(mask).mul_(share) if ctx.needs_input_grad[0] else None
        return dx, da, None


class RowNoise(nn.Module):
    """NEFTune: uniform noise of `alpha / sqrt(length x width)` on a row's token embeddings (Jain et al. 2023, 2310.05914).

    Drawn per row like dropout, with the row's own length, where other implementations take that of its batch.
    """

    def __init__(self, alpha: float, seeds: RowSeeds) -> None:
        super().__init__()
        self.alpha = alpha
        self.row_seeds = seeds

    def forward(self, embedded: torch.Tensor) -> torch.Tensor:
        """The embeddings (batch, length, width) with noise; as they are in evaluation, and where no row is known."""
        if not self.training or not self.row_seeds.seeds:
            return embedded
        rows = embedded.reshape(-1, embedded.shape[-1]).clone()  # (tokens, width)
        for seed, (start, end) in zip(self.row_seeds.seeds, self.row_seeds.spans, strict=True):
            generator = self.row_seeds.generator(f"{seed}:noise", rows.device)
            noise = torch.empty_like(rows[start:end]).uniform_(-1, 1, generator=generator)
            rows[start:end] += noise.mul_(self.alpha / math.sqrt(noise.numel()))
        return rows.view_as(embedded)


def add_noise(model: Any, alpha: float) -> None:
    """Puts noise of this strength on the token embeddings of a model in training; none with 0."""
    if alpha == 0:
        return
    noise = RowNoise(alpha, find_row_seeds(model) or RowSeeds())
    embeddings = model.get_input_embeddings()
    embeddings.add_module("noise", noise)
    embeddings.register_forward_hook(lambda module, ids, embedded: noise(embedded))


def find_row_seeds(model: nn.Module) -> RowSeeds | None:
    """The row seeds that the random layers of a model share; None where it has none."""
    return next((module.row_seeds for module in model.modules() if isinstance(module, RowDropout | RowNoise)), None)
