"""How much memory a run may take, and in which number format it computes, with the reason in words."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.plan import GIB, GpuInfo
from qlora_studio.core.words import gib

CPU_SHARE = 0.7
"""Share of the available memory that a run on the CPU may take; the rest is for everything else that runs."""


def find_budget(config: TrainConfig, gpu: GpuInfo | None) -> tuple[int, str]:
    """Bytes the run may take of the card (or of the computer's memory where `gpu` is None), and why so many."""
    wanted, keep = config.memory.budget_gib, round(config.memory.keep_free_gib * GIB)
    if gpu is None:
        there, whose = round(_available_memory() * CPU_SHARE), f"{CPU_SHARE:.0%} of this computer's available memory"
    else:
        there, whose = gpu.free_bytes, f"what is free on {gpu.name}"
    budget, reason = there, f"Budget {gib(there)}: {whose}."
    if wanted is not None and wanted * GIB <= there:
        budget, reason = round(wanted * GIB), f"Budget {gib(round(wanted * GIB))}: your setting."
    elif wanted is not None:
        reason = f"Budget {gib(there)} instead of {wanted:g} GiB: {whose}."
    if keep:
        budget = max(0, budget - keep)
        reason = f"{reason[:-1]}, less {gib(keep)} kept free: {gib(budget)}."
    return budget, reason


def choose_compute(config: TrainConfig, gpu: GpuInfo | None) -> Literal["bf16", "fp16", "fp32"]:
    """The number format of the arithmetic: bf16 where the hardware has it, else fp16 on a card and fp32 on a CPU."""
    if config.model.compute_dtype != "auto":
        return config.model.compute_dtype
    if gpu is not None:
        return "fp16" if (gpu.compute_capability or (8, 0)) < (8, 0) else "bf16"
    return "bf16" if _cpu_has_bf16() else "fp32"


def _available_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def _cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 itself; else fp32 is faster. Linux tells, other systems do not."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
