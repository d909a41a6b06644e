"""What a training run is given, and how it ended."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from peft import PeftModel

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.example import Example
from qlora_studio.core.held_out import HeldOut
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
    also: Callable[[Path], None] = lambda folder: None
    """Writes what stands beside the final adapter, such as a tokenizer with its template."""
    answers: Callable[[], Iterable[tuple[str, str]]] = tuple
    """Prompts and what the model in memory answers them now; it is in evaluation mode while they are read."""
    all_logged: Callable[[], bool] = lambda: True
    """Whether every event is on the disk: a checkpoint must not be ahead of the losses that a kill would take along."""
    pinned: Callable[[], Collection[int]] = tuple
    """Steps whose checkpoints a person wants kept."""


Ending = Literal["finished", "early", "stopped", "paused"]
"""`early`: by `evaluation.patience`, which is a finish too."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a training ended."""

    ending: Ending
    step: int
    total_steps: int
    loss: float | None
    held_out: HeldOut
    """Every held-out loss that was measured, those before a resume too."""

    @property
    def stopped(self) -> bool:
        """Whether steps are left that a person did not want now."""
        return self.ending in ("stopped", "paused")

    @property
    def held_out_after(self) -> float | None:
        return self.held_out.newest[1] if self.held_out.newest else None
