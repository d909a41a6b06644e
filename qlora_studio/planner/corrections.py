"""What runs on this machine really took, as a share of what was planned; kept for the next plan."""

from __future__ import annotations

from pathlib import Path

from qlora_studio.core.events import ProbeMeasured
from qlora_studio.core.plan import MIB, GpuInfo, MemoryPlan, ModelShape, PlanSettings
from qlora_studio.planner.activations import step_peak
from qlora_studio.planner.estimate import CONTEXT_BYTES, SLACK, fixed_bytes
from qlora_studio.planner.kept import machine_key, read_kept, write_kept

FILE = "memory-corrections.json"
LEAST = {"cuda": 0.8, "cpu": 1.0}
MOST = 1.5
"""A correction outside these bounds says that something else was measured. A process's peak on a CPU also holds what
loading took, so it can say that a step takes more than planned, never that it takes less."""
WEIGHT = 0.5
"""How much of the difference a new measurement moves the kept correction by."""
WORTH_BYTES = 64 * MIB
"""A step whose moving part is smaller than this says nothing about larger ones."""


def read_correction(cache: Path, card: GpuInfo | None) -> float:
    """The correction for this card, or for the CPU where there is none; 1 where nothing was measured yet."""
    kept = read_kept(cache / FILE).get(machine_key(card))
    factor = kept.get("factor") if isinstance(kept, dict) else None
    return _bounded(float(factor), card) if isinstance(factor, int | float) else 1.0


def step_settings(plan: MemoryPlan, probe: ProbeMeasured) -> PlanSettings | None:
    """The plan's settings for the step that the probe really took; None for a plan from before plans kept theirs."""
    if plan.settings is None:
        return None
    step = {
        "micro_batch_tokens": probe.tokens,
        "row_tokens": probe.row_tokens,
        "trained_tokens": probe.trained_tokens,
        "checkpointed_layers": plan.checkpointed_layers,
        "packed": not probe.padded,
    }
    return plan.settings.model_copy(update=step)


def learn_correction(
    cache: Path, card: GpuInfo | None, shape: ModelShape, settings: PlanSettings, measured_bytes: int
) -> float:
    """Moves the kept correction towards a measurement and returns it; writes whole or not at all.

    `settings` describe the step that was measured, its own tokens and not the plan's. `measured_bytes` is what the
    budget's cap counts: the most that the allocator reserved on CUDA, the process's peak on a CPU, with optimizer
    states in both.
    """
    plain = settings.model_copy(update={"correction": 1.0})
    moving = step_peak(shape, plain).total
    before = read_correction(cache, card)
    if moving < WORTH_BYTES:
        return before
    context = CONTEXT_BYTES["cpu"] if card is None else 0
    taken = (measured_bytes - context) / (1 + SLACK["cpu" if card is None else "cuda"])
    found = (taken - fixed_bytes(shape, plain)) / moving
    after = before + WEIGHT * (_bounded(found, card) - before)
    kept = read_kept(cache / FILE)
    kept[machine_key(card)] = {"factor": round(after, 4), "last": round(found, 4), "model": shape.name}
    write_kept(cache / FILE, kept)
    return round(after, 4)


def _bounded(factor: float, card: GpuInfo | None) -> float:
    return min(MOST, max(LEAST["cpu" if card is None else "cuda"], factor))
