"""What a training run is given, and how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.example import Example
from qlora_studio.core.plan import MemoryPlan
from qlora_studio.engine.accelerator.protocol import Accelerator


@dataclass(frozen=True, slots=True)
class Setup:
    """What a training run works on and where it writes."""

    config: TrainConfig
    plan: MemoryPlan
    accelerator: Accelerator
    model: PeftModel
    train: Sequence[Example]
    held_out: Sequence[Example]
    folder: Path
    base: str
    """Name of the base for the adapter's config: a hub id or a model's name, never a path."""
    revision: str | None = None
    resume: Path | None = None
    """A verified checkpoint of the same run to go on from."""
    objective: str = "supervised"
    """By its name in `objectives/registry.py`."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a training ended."""

    stopped: bool
    step: int
    total_steps: int
    loss: float | None
    held_out_before: float | None
    held_out_after: float | None
