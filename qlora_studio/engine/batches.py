"""Steps of whole units, how a step is cut into micro-batches, and the tensors of one.

Which rows make a step (`core.steps`) depends on seed and data alone; only the cutting depends on memory, and the sum of
losses and gradients over a step does not depend on the cutting. Rows lie side by side in one sequence where the model's
attention can be cut between them, else below each other, padded to the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from qlora_studio.core.config import OptimConfig
from qlora_studio.core.example import Example
from qlora_studio.core.micro_batches import cut_rows, tokens_of
from qlora_studio.core.steps import Step, plan_steps
from qlora_studio.engine.kernels.documents import Documents
from qlora_studio.engine.kernels.loss import Targets, find_targets


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows that go forward and backward together."""

    rows: tuple[int, ...]
    """Which rows of the data these are, in the order of the batch."""
    ids: torch.Tensor
    """(batch, length), padded on the right; (1, tokens) where they are packed."""
    spans: tuple[tuple[int, int], ...]
    """Where each row lies among all tokens of the batch, without padding."""
    targets: Targets
    positions: torch.Tensor | None = None
    """(1, tokens) where they are packed: from 0 in each row."""
    documents: Documents | None = None
    """Where attention is cut, where they are packed."""

    @property
    def inputs(self) -> dict[str, Any]:
        """What the model is called with."""
        if self.documents is None:
            return {"input_ids": self.ids}
        return {"input_ids": self.ids, "position_ids": self.positions, "documents": self.documents}


def plan_unit_steps(units: Sequence[tuple[int, ...]], lengths: Sequence[int], optim: OptimConfig) -> list[Step]:
    """All optimizer steps of a run whose units (an example, a pair) must each stand whole in one step."""
    steps = plan_steps([sum(lengths[row] for row in unit) for unit in units], optim)
    return [Step(tuple(row for unit in step.rows for row in units[unit]), step.epoch) for step in steps]


@dataclass(frozen=True, slots=True)
class Layout:
    """How the rows of a micro-batch lie."""

    device: torch.device
    packed: bool = False
    """Side by side in one sequence; else below each other and padded to the longest."""
    varlen: bool = False
    """Whether one kernel cuts attention between packed rows."""
    repeats: bool = False
    """Whether packed attention repeats keys and values for every head."""

    def tokens_of(self, lengths: Sequence[int]) -> int:
        """Tokens of a micro-batch with rows of these lengths, padding included."""
        return tokens_of(lengths, packed=self.packed)

    def cut(self, rows: Sequence[int], lengths: Sequence[int], micro_batch_tokens: int) -> list[list[int]]:
        """Positions in `rows`, in groups that stay within `micro_batch_tokens`; see `cut_rows`."""
        return cut_rows(rows, lengths, micro_batch_tokens, packed=self.packed)

    def largest(self, steps: Sequence[Step], lengths: Sequence[int], micro_batch_tokens: int) -> tuple[int, ...]:
        """The rows of that micro-batch of a run which takes the most memory: most tokens with padding, then most rows."""
        batches = (
            tuple(step.rows[place] for place in places)
            for step in steps
            for places in self.cut(step.rows, lengths, micro_batch_tokens)
        )
        return max(batches, key=lambda rows: (self.tokens_of([lengths[row] for row in rows]), len(rows)))

    def collate(self, examples: Sequence[Example], rows: Sequence[int]) -> MicroBatch:
        """The micro-batch of these rows of the data, on the device.

        Causal attention never looks right, and padding carries no label, so padded rows need neither mask nor position
        ids: the real tokens are computed exactly as if they stood alone. So they are where attention is cut by row.
        """
        lengths = [len(examples[row].input_ids) for row in rows]
        tokens, step = self.tokens_of(lengths), max(lengths)
        starts = [sum(lengths[:place]) if self.packed else place * step for place in range(len(rows))]
        spans = tuple((start, start + length) for start, length in zip(starts, lengths, strict=True))
        ids = torch.zeros(tokens, dtype=torch.long)
        for row, (start, end) in zip(rows, spans, strict=True):
            ids[start:end] = torch.tensor(examples[row].input_ids)
        targets = find_targets([examples[row].labels() for row in rows], starts)
        batch = MicroBatch(tuple(rows), self._send(ids), spans, targets.sent(self._send))
        if not self.packed:
            return replace(batch, ids=batch.ids.view(len(rows), -1))
        positions = torch.cat([torch.arange(length) for length in (*lengths, tokens - sum(lengths))])
        return replace(
            batch,
            ids=batch.ids.unsqueeze(0),
            positions=self._send(positions).unsqueeze(0),
            documents=self._documents(spans, tokens),
        )

    def _documents(self, spans: tuple[tuple[int, int], ...], tokens: int) -> Documents:
        if not self.varlen:
            return Documents(spans, repeats=self.repeats)
        cuts = [0, *(end for _, end in spans), *([tokens] if tokens > spans[-1][1] else [])]
        longest = max(after - before for before, after in pairwise(cuts))
        return Documents(spans, self._send(torch.tensor(cuts, dtype=torch.int32)), longest)

    def _send(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor on the device, on its way when this returns."""
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)
