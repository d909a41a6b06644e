"""Whether each layer of a GGUF file holds what training added to it: some of its rows beside what they should be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type

from qlora_studio.engine.adapter_file import RowRange
from qlora_studio.engine.gguf_file.write import GgufFile
from qlora_studio.engine.merge import MergedTensor
from qlora_studio.engine.strength import Measure, Strength, plain_layers

SAMPLE_VALUES = 1 << 18
"""Of each layer, from its first row on: enough that chance moves a share by hundredths."""


def measure_gguf(file: GgufFile, path: Path) -> Iterator[Strength]:
    """The strength of each layer with plain LoRA in a file that `file` describes."""
    held = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    planned = {one.source.name: one for one in file.tensors if isinstance(one.source, MergedTensor)}
    sources = [one.source for one in planned.values() if isinstance(one.source, MergedTensor)]
    for layer in plain_layers(file.merged, sources):
        tensor, one = layer.tensor, planned[layer.tensor.name]
        unit = file.head_rows(one)
        rows, stored = next(file.merged.before(tensor, unit))
        count = min(rows.after, max(1, SAMPLE_VALUES // tensor.shape[1] // unit) * unit)
        before, wanted = stored[:count].float(), layer.wanted(RowRange(0, count, rows.of))
        parts = [file.lay_out(one, value) for value in (before, wanted, before + wanted)]
        found = _decode(held[one.name].data[:count], one.kind)
        expected = _decode(file.encode(one, parts[2]), one.kind)
        measure = Measure()
        measure.add(found, expected, parts[0], parts[1])
        if (strength := measure.strength(layer.name)) is not None:
            yield strength


def _decode(stored: np.ndarray, kind: Type) -> torch.Tensor:
    """Rows (rows, columns) in fp32, from their bytes (rows, bytes of a row) or numbers."""
    return torch.from_numpy(gguf.dequantize(stored.view(np.uint8), kind).copy())
