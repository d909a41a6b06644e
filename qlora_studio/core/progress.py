"""The state of a job as a pure fold of its events: all that command line, page and history look at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Literal

from qlora_studio.core import events as ev
from qlora_studio.core.held_out import HeldOut
from qlora_studio.core.jobs import Report
from qlora_studio.core.plan import MemoryPlan
from qlora_studio.core.series import Series

State = Literal["queued", "starting", "running", "stopping", "finished", "stopped", "paused", "failed", "interrupted"]
ENDED: tuple[State, ...] = ("finished", "stopped", "paused", "failed")
"""States that a job's own last event says."""
AT_WORK: tuple[State, ...] = ("starting", "running", "stopping")
RESUMABLE: tuple[State, ...] = ("stopped", "paused", "failed", "interrupted")
"""States of a run that can go on from where it was."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a job stands."""

    state: Literal["starting", "running", "finished", "stopped", "paused", "failed"] = "starting"
    """As far as the events tell; `find_state` adds what only locks and requests show."""
    job: str = ""
    phase: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    phase_seconds_left: float | None = None
    """Until the phase is over, where that can be told."""
    step: int = 0
    total_steps: int = 0
    losses: Series = field(default_factory=Series)
    evaluations: Series = field(default_factory=Series)
    base_loss: float | None = None
    """Held-out loss of the base alone."""
    tokens: Series = field(default_factory=Series)
    """Tokens that went through the model up to each step."""
    seconds: Series = field(default_factory=Series)
    """Seconds of training up to each step: those of the steps themselves, whatever came between."""
    last: ev.StepLogged | None = None
    plan: MemoryPlan | None = None
    probe: ev.ProbeMeasured | None = None
    peak_bytes: int = 0
    notes: tuple[str, ...] = ()
    samples: tuple[ev.SampleWritten, ...] = ()
    retries: tuple[ev.StepRetriedSmaller, ...] = ()
    skipped: tuple[ev.UpdateSkipped, ...] = ()
    exported: tuple[ev.Exported, ...] = ()
    checks: tuple[ev.Checked, ...] = ()
    checkpoint: ev.CheckpointSaved | None = None
    adapter_step: int | None = None
    """The step whose weights the saved adapter holds."""
    message: str = ""
    hint: str = ""
    report: Report | None = None

    @property
    def held_out(self) -> HeldOut:
        """The held-out losses so far."""
        return HeldOut(self.base_loss, tuple(self.evaluations))

    @property
    def mean_tokens_per_second(self) -> float | None:
        """Of all its training so far; None before there is any."""
        return self.tokens[-1][1] / self.seconds[-1][1] if self.seconds and self.seconds[-1][1] else None

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def share(self) -> float:
        """How much of the job is done, 0 to 1: by steps once there are any, else inside the phase."""
        if self.state == "finished":
            return 1.0
        if self.total_steps:
            return self.step / self.total_steps
        return min(1.0, self.done / self.total) if self.total else 0.0


def advance(state: Progress, event: ev.Event) -> Progress:
    """The state after one more event."""
    match event:
        case ev.JobStarted():
            return replace(state, state="running", job=event.job, message="", hint="")
        case ev.PhaseEntered():
            return replace(state, phase=event.phase, done=0, total=0, unit="", phase_seconds_left=None)
        case ev.Advanced():
            left = event.seconds_left
            return replace(state, done=event.done, total=event.total, unit=event.unit, phase_seconds_left=left)
        case ev.Noted():
            return replace(state, notes=(*state.notes, event.text))
        case ev.PlanMade():
            return replace(state, plan=event.plan)
        case ev.ProbeMeasured():
            return replace(state, probe=event)
        case ev.Resumed():
            return _back_to(state, event.step)
        case ev.StepLogged():
            return _with_step(state, event)
        case ev.EvaluationLogged() if not event.adapter:
            return replace(state, base_loss=event.loss)
        case ev.EvaluationLogged():
            return replace(state, evaluations=state.evaluations.add(event.step, event.loss))
        case ev.SampleWritten():
            fresh = (sample for sample in state.samples if not _is_same(sample, event))
            return replace(state, samples=(*fresh, event))
        case ev.CheckpointSaved():
            return replace(state, checkpoint=event)
        case ev.Extended():
            return replace(state, state="stopped", report=None)
        case ev.AdapterSaved():
            return replace(state, adapter_step=event.step)
        case ev.StepRetriedSmaller():
            return replace(state, retries=(*state.retries, event))
        case ev.UpdateSkipped():
            return replace(state, skipped=(*state.skipped, event))
        case ev.Exported():
            return replace(state, exported=(*state.exported, event))
        case ev.Checked():
            return replace(state, checks=(*state.checks, event))
        case ev.Finished():
            return replace(state, state="finished", report=event.report)
        case ev.Stopped():
            ended: Literal["stopped", "paused"] = "paused" if event.paused else "stopped"
            return replace(state, state=ended, step=max(state.step, event.step))
        case ev.Failed():
            return replace(state, state="failed", message=event.message, hint=event.hint)
    return state


def _back_to(state: Progress, step: int) -> Progress:
    """What is known up to a step: a run that goes on from there computes the rest anew."""
    return replace(
        state,
        step=step,
        losses=state.losses.up_to(step),
        evaluations=state.evaluations.up_to(step),
        samples=tuple(sample for sample in state.samples if sample.step <= step),
    )


def _with_step(state: Progress, event: ev.StepLogged) -> Progress:
    return replace(
        state,
        step=event.step,
        total_steps=event.total_steps,
        last=event,
        peak_bytes=max(state.peak_bytes, event.peak_bytes),
        losses=state.losses.add(event.step, event.loss),
        tokens=_grown(state.tokens, event.step, event.tokens),
        seconds=_grown(state.seconds, event.step, event.tokens / max(event.tokens_per_second, 1e-9)),
    )


def _grown(series: Series, step: int, more: float) -> Series:
    """A running sum with one more step; steps that are computed anew count once."""
    before = series.up_to(step - 1)
    return series.add(step, (before[-1][1] if before else 0.0) + more)


def _is_same(sample: ev.SampleWritten, other: ev.SampleWritten) -> bool:
    """Whether both are of one prompt at one moment: a run that goes on may answer anew."""
    return (sample.step, sample.side, sample.prompt) == (other.step, other.side, other.prompt)


def fold(events: Iterable[ev.Event], state: Progress | None = None) -> Progress:
    """The state after all of these events."""
    return reduce(advance, events, state or Progress())


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as a person means it: its state, how far it is, how long it has taken."""

    state: State
    progress: Progress
    seconds: float | None = None
    """From its first to its newest event."""

    @property
    def at_work(self) -> bool:
        return self.state in AT_WORK


def find_state(progress: Progress, *, alive: bool, seen: bool, stop_requested: bool, queued: bool = False) -> State:
    """The state of a job.

    `alive`: a process holds the folder's lock. `seen`: one has held it, or the job is too old for one still to come;
    so a job whose process has not appeared yet is starting, never interrupted. `stop_requested`: a stop waits in `control`.
    `queued`: it waits for its turn, be it for the first time or to go on.
    """
    if queued and not alive and progress.state != "finished":
        return "queued"
    if progress.state != "starting" and progress.state != "running":
        return progress.state
    if alive:
        return "stopping" if stop_requested else progress.state
    return "interrupted" if seen else "starting"
