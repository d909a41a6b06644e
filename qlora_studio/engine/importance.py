"""How much each column of a linear layer counts: the mean square of what the layer is given on training rows.

llama.cpp calls it an importance matrix: blocks of few bits are then fitted so that the layers' outputs, rather than their
weights, lose least. It is measured on the model that was chatted with, base and adapter, as `llama-imatrix` measures a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import nn

from qlora_studio.core.example import Example, token_lengths
from qlora_studio.core.exports import IMPORTANCE_TOKENS

PASS_TOKENS = 2048
"""Tokens, padding included, that go through the model together."""
Advanced = Callable[[int, int], None]


def measure_importance(
    model: Any, examples: Sequence[Example], advanced: Advanced = lambda done, total: None
) -> dict[str, torch.Tensor]:
    """Of each linear layer but the head, by its weight's name in the loaded base: (columns,) fp32 on the CPU.

    `advanced` hears tokens done and tokens in all.
    """
    rows = choose_rows(token_lengths(examples))
    sums = {module: _Sum(name) for name, module in _layers(model)}
    place = model.get_input_embeddings().weight.device
    kept: list[torch.Tensor] = []
    hooks = [
        module.register_forward_pre_hook(lambda layer, inputs: sums[layer].add(inputs[0], kept[0])) for module in sums
    ]
    done, total = 0, sum(length for _, length in rows)
    try:
        for group in _groups(rows):
            ids = torch.zeros(len(group), group[0][1], dtype=torch.long)
            mask = torch.zeros_like(ids, dtype=torch.bool)
            for at, (row, length) in enumerate(group):
                ids[at, :length], mask[at, :length] = torch.tensor(examples[row].input_ids), True
            kept[:] = [mask.flatten().to(place)]
            with torch.inference_mode():  # what stands behind a causal model's token does not touch it: no mask
                model(input_ids=ids.to(place), use_cache=False, logits_to_keep=1)
            done += sum(length for _, length in group)
            advanced(done, total)
    finally:
        for hook in hooks:
            hook.remove()
    return {f"{one.layer}.weight": one.mean() for one in sums.values() if one.tokens}


def choose_rows(lengths: Sequence[int], most: int = IMPORTANCE_TOKENS) -> list[tuple[int, int]]:
    """Rows from all over the set, with their lengths, the longest first: as many as `most` tokens allow, at least one."""
    total = sum(lengths)
    step = max(1.0, total / most)
    places = range(len(lengths)) if step == 1 else (int(at * step) for at in range(int(len(lengths) / step) or 1))
    return sorted(((place, lengths[place]) for place in places), key=lambda row: -row[1])


def save_importance(importance: dict[str, torch.Tensor], file: Path) -> None:
    save_file(importance, file)


def load_importance(file: Path | None) -> dict[str, torch.Tensor]:
    """What `save_importance` has written; nothing where there is no file."""
    return load_file(file) if file else {}


@dataclass(slots=True)
class _Sum:
    """Squares of a layer's inputs, summed over tokens."""

    layer: str
    squares: torch.Tensor | None = None
    tokens: int = field(default=0)

    def add(self, inputs: torch.Tensor, kept: torch.Tensor) -> None:
        """Takes in the kept tokens of inputs (…, columns); a layer that is given other tokens than the model's is left out."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        if len(rows) != len(kept):
            return
        squares = rows[kept].float().square().sum(0)
        self.squares = squares if self.squares is None else self.squares + squares
        self.tokens += int(kept.sum())

    def mean(self) -> torch.Tensor:
        assert self.squares is not None
        return (self.squares / self.tokens).cpu()


def _layers(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """Every linear layer but the head, an adapted one with its adapter, by its name in the base."""
    head = model.get_output_embeddings()
    adapted: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module in adapted:
            continue
        layer: Any = module
        if isinstance(layer, BaseTunerLayer):
            adapted.update(module.modules())
            layer = layer.get_base_layer()
        if isinstance(layer, nn.Linear) and layer is not head:
            yield name.removeprefix("base_model.model."), module


def _groups(rows: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Rows of about the same length, as many at once as fill `PASS_TOKENS` when padded; a longer one alone."""
    group: list[tuple[int, int]] = []
    for row in rows:
        if group and group[0][1] * (len(group) + 1) > PASS_TOKENS:
            yield group
            group = []
        group.append(row)
    if group:
        yield group
