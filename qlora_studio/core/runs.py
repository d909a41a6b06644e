"""A run as a face sees it: a line of the history, and the whole of one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from qlora_studio.core.config import TrainConfig
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
    seconds: float | None = None
    peak_bytes: int = 0
    has_adapter: bool = False
    has_curve: bool = False

    @property
    def at_work(self) -> bool:
        return self.state in AT_WORK


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
