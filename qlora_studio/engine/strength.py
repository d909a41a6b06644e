"""Whether what training added to each layer is in an exported file, at its strength: the change found beside the wanted.

Rounding to few bits moves a weight further than training did, so a distance cannot tell that a layer lost its adapter.
The direction can: `share` is <found - before, wanted> / <wanted, wanted>, 1 where all is there and 0 where nothing is.
Rounding to the nearest keeps more or less than all of a small change, and how much is known: it is that of the weights that
should be there, rounded in the same way. What is compared is the share found with that one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from qlora_studio.engine.adapter_file import RowRange
from qlora_studio.engine.merge import MergedTensor, MergedWeights
from qlora_studio.engine.model_weights import ModelWeights

PLAIN = {"A", "B"}
TOLERANCE = 0.1
"""Of the share, beside what chance explains. A layer at nine tenths of its strength is a fault; rounding is not."""
DEVIATIONS = 6
"""How many standard deviations of chance are no fault: about one layer in a thousand million lies beyond."""


@dataclass(frozen=True, slots=True)
class Strength:
    """What became of one layer's change."""

    layer: str
    share: float
    expected: float
    deviation: float
    """Of the share, by chance alone."""

    @property
    def is_off(self) -> bool:
        return abs(self.share - self.expected) > TOLERANCE + DEVIATIONS * self.deviation


@dataclass(slots=True)
class Measure:
    """Sums over the rows of one layer."""

    found: float = 0.0
    expected: float = 0.0
    wanted: float = 0.0
    missed: float = 0.0
    values: int = 0

    def add(self, found: torch.Tensor, expected: torch.Tensor, before: torch.Tensor, wanted: torch.Tensor) -> None:
        """Takes in some rows, all (rows, columns) in fp32 and laid out alike."""
        self.found += float(((found - before) * wanted).sum(dtype=torch.float64))
        self.expected += float(((expected - before) * wanted).sum(dtype=torch.float64))
        self.wanted += float(wanted.square().sum(dtype=torch.float64))
        self.missed += float((found - expected).square().sum(dtype=torch.float64))
        self.values += wanted.numel()

    def strength(self, layer: str) -> Strength | None:
        """What was summed up; None for a layer that training did not change."""
        if not self.wanted:
            return None
        deviation = math.sqrt(self.missed / self.wanted / self.values)
        return Strength(layer, self.found / self.wanted, self.expected / self.wanted, deviation)


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer with plain LoRA, and its wanted change, computed apart from what the merge does with the factors."""

    name: str
    tensor: MergedTensor
    a: torch.Tensor
    b: torch.Tensor
    """With its scale."""

    def wanted(self, rows: RowRange) -> torch.Tensor:
        return self.b[rows.first : rows.after] @ self.a


def plain_layers(merged: MergedWeights, tensors: Iterable[MergedTensor]) -> Iterator[Layer]:
    """The layers of these that plain LoRA changes and that are stored row by row."""
    for tensor in tensors:
        module = tensor.parameter.removesuffix(".weight")
        pair = merged.adapter.pairs.get(module)
        plain = pair is not None and set(pair.names) == PLAIN and tensor.parameter.endswith(".weight")
        if plain and len(tensor.shape) == 2 and tensor.parameter not in merged.layout.transposed:
            a, b, scale = merged.adapter.factors(module)
            yield Layer(module, tensor, a, b * scale)


def measure_merged(merged: MergedWeights, written: ModelWeights) -> Iterator[Strength]:
    """The strength of each such layer in a merged folder, some rows of one weight in memory at a time."""
    for layer in plain_layers(merged, merged.tensors):
        measure = Measure()
        for rows, stored in merged.before(layer.tensor):
            before, wanted = stored.float(), layer.wanted(rows)
            found = written.read_rows(layer.tensor.name, rows.first, rows.after).float()
            measure.add(found, before + wanted, before, wanted)
        if (strength := measure.strength(layer.name)) is not None:
            yield strength
