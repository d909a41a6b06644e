"""How far exports are from the chat, faithful and broken on purpose: what the verdict's limits are set by.

    python benchmarks/export.py RUN [--home HOME]

Asks the run's own chat, then models merged from it in several ways, on the same tokens: the demo's prompts and the rows
that the run holds out. Prints a Markdown table. The run must be finished, e.g. by `qlora-studio demo`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


@contextmanager
def changed_adapter(adapter: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Iterator[Path]:
    """A copy of the adapter whose tensors are changed so."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "adapter"
        shutil.copytree(adapter, copy)
        file = copy / "adapter_model.safetensors"
        save_file({name: change(name, value) for name, value in load_file(file).items()}, file)
        yield copy


def halved(name: str, value: torch.Tensor) -> torch.Tensor:
    return value / 2 if "lora_B" in name else value


def without_a_layer(name: str, value: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(value) if ".layers.0." in name and "lora_B" in name else value


def without(name: str, value: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(value) if "lora_B" in name else value


def unchanged(name: str, value: torch.Tensor) -> torch.Tensor:
    return value


BROKEN = {"half the strength": halved, "first layer left out": without_a_layer, "adapter left out": without}
