"""What runs on this machine really took, as a share of what was planned; kept for the next plan."""

from __future__ import annotations

import json
import os
from pathlib import Path

from qlora_studio.core.plan import MIB, GpuInfo, MemoryPlan, ModelShape, PlanSettings
from qlora_studio.planner.activations import step_peak
from qlora_studio.planner.estimate import CONTEXT_BYTES, SLACK, fixed_bytes

FILE = "memory-corrections.json"
LEAST = {"cuda": 0.8, "cpu": 1.0}
MOST = 1.5
"""A correction outside these bounds says that something else was measured. A process's peak on a CPU also holds what
loading took, so it can say that a step takes more than planned, never that it takes less."""
WEIGHT = 0.5
"""How much of the difference a new measurement moves the kept correction by."""
WORTH_BYTES = 64 * MIB
"""A step whose moving part is smaller than this says nothing about larger ones."""


def read_correction(cache: Path, gpu: GpuInfo | None) -> float:
    """The correction for this card, or for the CPU where `gpu` is None; 1 where nothing was measured yet."""
    kept = _read(cache).get(_machine(gpu))
    factor = kept.get("factor") if isinstance(kept, dict) else None
    return _bounded(float(factor), gpu) if isinstance(factor, int | float) else 1.0


def step_settings(plan: MemoryPlan, tokens: int, row_tokens: int, trained_tokens: int) -> PlanSettings | None:
    """The plan's settings for a step that was really taken: its padded tokens, its longest row, what it trained.

    None for a plan from before plans kept their settings.
    """
    if plan.settings is None:
        return None
    step = {"micro_batch_tokens": tokens, "row_tokens": row_tokens, "trained_tokens": trained_tokens}
    return plan.settings.model_copy(update=step)


def learn_correction(
    cache: Path, gpu: GpuInfo | None, shape: ModelShape, settings: PlanSettings, measured_bytes: int
) -> float:
    """Moves the kept correction towards a measurement and returns it; writes whole or not at all.

    `settings` describe the step that was measured, its own tokens and not the plan's. `measured_bytes` is the
    allocator's peak on CUDA with optimizer states, and the process's peak on a CPU.
    """
    plain = settings.model_copy(update={"correction": 1.0})
    moving = step_peak(shape, plain).total
    before = read_correction(cache, gpu)
    if moving < WORTH_BYTES:
        return before
    taken = float(measured_bytes)
    if gpu is None:
        taken = (taken - CONTEXT_BYTES["cpu"]) / (1 + SLACK["cpu"])
    found = (taken - fixed_bytes(shape, plain)) / moving
    after = before + WEIGHT * (_bounded(found, gpu) - before)
    kept = _read(cache)
    kept[_machine(gpu)] = {"factor": round(after, 4), "last": round(found, 4), "model": shape.name}
    _write(cache, kept)
    return round(after, 4)


def _bounded(factor: float, gpu: GpuInfo | None) -> float:
    return min(MOST, max(LEAST["cpu" if gpu is None else "cuda"], factor))


def _machine(gpu: GpuInfo | None) -> str:
    return "cpu" if gpu is None else (gpu.uuid or f"{gpu.name} {gpu.total_bytes}")


def _read(cache: Path) -> dict[str, object]:
    """What is kept; nothing where the file is missing or broken."""
    try:
        values = json.loads((cache / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _write(cache: Path, values: dict[str, object]) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    partial = cache / f"{FILE}.partial"
    with partial.open("w", encoding="utf-8") as file:
        json.dump(values, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(cache / FILE)
