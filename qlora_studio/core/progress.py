"""The state of a job as a pure fold of its events: all that command line, page and history look at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

from qlora_studio.core import events as ev
from qlora_studio.core.plan import MemoryPlan


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a job stands."""

    state: str = "waiting"
    """`waiting`, `running`, `finished`, `stopped` or `failed`; the folder adds `interrupted`."""
    job: str = ""
    phase: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    step: int = 0
    total_steps: int = 0
    losses: tuple[tuple[int, float], ...] = ()
    evaluations: tuple[tuple[int, float], ...] = ()
    base_loss: float | None = None
    """Held-out loss of the base alone."""
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
    message: str = ""
    hint: str = ""
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        return self.state in ("finished", "stopped", "failed")

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
            return replace(state, phase=event.phase, done=0, total=0, unit="")
        case ev.Advanced():
            return replace(state, done=event.done, total=event.total, unit=event.unit)
        case ev.Noted():
            return replace(state, notes=(*state.notes, event.text))
        case ev.PlanMade():
            return replace(state, plan=event.plan)
        case ev.ProbeMeasured():
            return replace(state, probe=event)
        case ev.Resumed():
            return replace(
                state,
                step=event.step,
                losses=tuple(point for point in state.losses if point[0] <= event.step),
                evaluations=tuple(point for point in state.evaluations if point[0] <= event.step),
            )
        case ev.StepLogged():
            return replace(
                state,
                step=event.step,
                total_steps=event.total_steps,
                last=event,
                peak_bytes=max(state.peak_bytes, event.peak_bytes),
                losses=(*before(state.losses, event.step), (event.step, event.loss)),
            )
        case ev.EvaluationLogged() if not event.adapter:
            return replace(state, base_loss=event.loss)
        case ev.EvaluationLogged():
            kept = before(state.evaluations, event.step)
            return replace(state, evaluations=(*kept, (event.step, event.loss)))
        case ev.SampleWritten():
            return replace(state, samples=(*state.samples, event))
        case ev.CheckpointSaved():
            return replace(state, checkpoint=event)
        case ev.StepRetriedSmaller():
            return replace(state, retries=(*state.retries, event))
        case ev.UpdateSkipped():
            return replace(state, skipped=(*state.skipped, event))
        case ev.Exported():
            return replace(state, exported=(*state.exported, event))
        case ev.Checked():
            return replace(state, checks=(*state.checks, event))
        case ev.Finished():
            return replace(state, state="finished", result=event.result)
        case ev.Stopped():
            return replace(state, state="stopped", step=max(state.step, event.step))
        case ev.Failed():
            return replace(state, state="failed", message=event.message, hint=event.hint)
    return state


def before(points: tuple[tuple[int, float], ...], step: int) -> tuple[tuple[int, float], ...]:
    """The points before a step: a run that began again, for want of a checkpoint, computes the later ones anew."""
    return points if not points or points[-1][0] < step else tuple(point for point in points if point[0] < step)


def fold(events: Iterable[ev.Event], state: Progress | None = None) -> Progress:
    """The state after all of these events."""
    return reduce(advance, events, state or Progress())
