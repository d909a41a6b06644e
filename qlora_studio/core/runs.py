"""A run as a face sees it: a line of the history, and the whole of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.labels import Labels
from qlora_studio.core.progress import AT_WORK, JobView, Progress, State


class RunSummary(BaseModel):
    """One line of the history. Small enough for hundreds of runs, kept until the run's files change."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    title: str
    created: float
    """Seconds since the epoch."""
    state: State
    unreadable: str = ""
    """Why this run cannot be opened, as a sentence; empty for one that can."""
    base: str = ""
    rank: int = 0
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    held_out: float | None = None
    """The newest held-out loss with the adapter."""
    best_held_out: float | None = None
    seconds: float | None = None
    peak_bytes: int = 0
    has_adapter: bool = False
    has_curve: bool = False
    note: str = ""
    tags: tuple[str, ...] = ()
    pinned: bool = False

    @property
    def at_work(self) -> bool:
        return self.state in AT_WORK


@dataclass(frozen=True, slots=True)
class CheckpointView:
    """One checkpoint that a run has kept."""

    step: int
    held_out: float | None
    """Its held-out loss, where it was measured."""
    best: bool
    newest: bool
    pinned: bool

    @property
    def name(self) -> str:
        return f"step-{self.step}"


@dataclass(frozen=True, slots=True)
class RunView:
    """One run whole: what it was told, how it went, where it lies."""

    name: str
    title: str
    created: float
    config: TrainConfig
    job: JobView
    folder: Path
    has_adapter: bool
    labels: Labels = field(default_factory=Labels)

    @property
    def state(self) -> State:
        return self.job.state

    @property
    def progress(self) -> Progress:
        return self.job.progress

    @property
    def seconds(self) -> float | None:
        return self.job.seconds

    @property
    def at_work(self) -> bool:
        return self.job.at_work


def best_first(run: RunView) -> tuple[float, str]:
    """Sorts runs by their best held-out loss; those that measured none come last."""
    best = run.progress.held_out.best
    return (best[1] if best else float("inf"), run.name)


def differing_settings(runs: Sequence[RunView]) -> list[tuple[str, tuple[Any, ...]]]:
    """The settings in which these runs differ: dotted name, and the value of each run in their order."""
    flat = [
        {
            f"{section}.{name}": value
            for section, fields in run.config.model_dump(mode="json").items()
            for name, value in fields.items()
        }
        for run in runs
    ]
    found = []
    for name in flat[0] if flat else ():
        values = tuple(one[name] for one in flat)
        if any(value != values[0] for value in values):
            found.append((name, values))
    return found
