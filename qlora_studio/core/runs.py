"""A run as a face sees it: a line of the history, and the whole of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.labels import Labels
from qlora_studio.core.progress import AT_WORK, JobView, Progress, State
from qlora_studio.core.series import Along


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
    """One run whole: its settings, how it went, where it lies."""

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


def move_along(progress: Progress, points: Sequence[tuple[float, float]], along: Along) -> list[tuple[float, float]]:
    """Points by step as points by tokens or seconds; those of steps nobody has counted yet are left out."""
    if along == "step":
        return list(points)
    reached = {0: 0.0, **dict(progress.tokens if along == "tokens" else progress.seconds)}
    return [(round(reached[int(step)]), value) for step, value in points if int(step) in reached]


def losses_at_marks(
    runs: Sequence[RunView], along: Along, *, held_out: bool, marks: int = 10
) -> list[tuple[float, list[float | None]]]:
    """Losses of runs at the same steps, tokens or seconds: equal marks up to where the furthest run has come.

    A training loss is the mean since the mark before, for single steps are noise; a held-out loss the last one measured
    since then. None where a run has none.
    """
    curves = []
    for run in runs:
        own = run.progress.evaluations if held_out else run.progress.losses
        first = [(0, run.progress.base_loss)] if held_out and run.progress.base_loss is not None else []
        curves.append(move_along(run.progress, [*first, *own], along))
    furthest = max((curve[-1][0] for curve in curves if curve), default=0)
    ends = sorted({round(furthest * mark / marks) for mark in range(marks + 1)} - ({0} if not held_out else set()))
    rows, before = [], -1.0
    for end in ends if furthest else []:
        found = [[value for place, value in curve if before < place <= end] for curve in curves]
        rows.append((float(end), [_sum_up(values, held_out=held_out) for values in found]))
        before = end
    return rows


def common_answers(runs: Sequence[Mapping[str, str]]) -> list[tuple[str, list[str | None]]]:
    """What runs answered to the prompts that at least two of them were asked; None where one was not."""
    prompts = dict.fromkeys(prompt for answers in runs for prompt in answers)
    both = [prompt for prompt in prompts if sum(prompt in answers for answers in runs) > 1]
    return [(prompt, [answers.get(prompt) for answers in runs]) for prompt in both]


def _sum_up(values: Sequence[float], *, held_out: bool) -> float | None:
    if not values:
        return None
    return values[-1] if held_out else sum(values) / len(values)


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
