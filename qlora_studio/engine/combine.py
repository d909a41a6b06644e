"""Several LoRA adapters of one base as one, with weights, as PEFT's `add_weighted_adapter` defines it.

`cat` is exact: the factors stand side by side, so that the new adapter's change is the weighted sum of the others' and its
rank the sum of theirs. `linear` adds the factors themselves, which keeps the rank and lets the adapters mix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import CombineHow
from qlora_studio.engine.adapter_file import PREFIX, AdapterFile

PLAIN = {"A", "B"}
Factors = tuple[torch.Tensor, torch.Tensor]
"""A (rank, in) and B (out, rank), scales included."""


@dataclass(frozen=True, slots=True)
class Combined:
    """A new adapter."""

    config: dict[str, Any]
    """Its `adapter_config.json`."""
    tensors: dict[str, torch.Tensor]
    """By their names in `adapter_model.safetensors`, fp32."""


def combine(parts: Sequence[tuple[AdapterFile, float]], how: CombineHow) -> Combined:
    """The weighted adapter of these, each with its weight, which may be negative.

    A layer that only some of them change is changed by those. Raises a StudioError for an adapter that is more than LoRA on
    layers, and with `linear` where ranks differ.
    """
    for adapter, _ in parts:
        _refuse_more_than_lora(adapter)
    modules = sorted({module for adapter, _ in parts for module in adapter.pairs})
    tensors: dict[str, torch.Tensor] = {}
    rank = 1
    for module in modules:
        here = [(adapter, weight) for adapter, weight in parts if module in adapter.pairs]
        a, b = _concatenated(module, here) if how == "cat" else _added(module, here)
        rank = max(rank, a.shape[0])
        tensors |= {f"{PREFIX}{module}.lora_A.weight": a, f"{PREFIX}{module}.lora_B.weight": b}
    for name, value in tensors.items():  # PEFT knows one rank: a layer of fewer gets rows and columns of nothing
        tensors[name] = _padded(value, rank, dim=0 if ".lora_A." in name else 1)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": modules,
        "fan_in_fan_out": parts[0][0].config.get("fan_in_fan_out", False),
    }
    return Combined(config, tensors)


def _concatenated(module: str, parts: Sequence[tuple[AdapterFile, float]]) -> Factors:
    factors = [(adapter.factors(module), weight) for adapter, weight in parts]
    return (
        torch.cat([a * (weight * scale) for (a, _, scale), weight in factors], dim=0),
        torch.cat([b for (_, b, _), _ in factors], dim=1),
    )


def _added(module: str, parts: Sequence[tuple[AdapterFile, float]]) -> Factors:
    factors = [(adapter.factors(module), weight) for adapter, weight in parts]
    if len({a.shape[0] for (a, _, _), _ in factors}) > 1:
        ranks = ", ".join(str(a.shape[0]) for (a, _, _), _ in factors)
        raise StudioError(
            f"Adapters of different ranks cannot be added: {module} has {ranks}.", "Combine them with cat instead."
        )
    a_sum, b_sum = torch.zeros_like(factors[0][0][0]), torch.zeros_like(factors[0][0][1])
    for (a, b, scale), weight in factors:
        root = math.sqrt(abs(weight * scale))
        a_sum += a * math.copysign(root, weight * scale)  # the sign once, else two would be none
        b_sum += b * root
    return a_sum, b_sum


def _padded(value: torch.Tensor, rank: int, *, dim: int) -> torch.Tensor:
    missing = rank - value.shape[dim]
    if not missing:
        return value.contiguous()
    shape = list(value.shape)
    shape[dim] = missing
    return torch.cat([value, torch.zeros(shape)], dim=dim).contiguous()


def _refuse_more_than_lora(adapter: AdapterFile) -> None:
    other = [
        *adapter.whole,
        *adapter.tokens,
        *(name for name, pair in adapter.pairs.items() if set(pair.names) != PLAIN),
    ]
    if other:
        raise StudioError(
            f"Only plain LoRA adapters can be combined, and this one changes {other[0]} in another way.",
            "Merge it with its base instead.",
            where=str(adapter.folder),
        )
