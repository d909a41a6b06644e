"""What can be told about the machine without torch: cards, driver, memory and who holds it, disk."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from qlora_studio.core.doctor import Check
from qlora_studio.core.plan import GIB, GpuInfo, ModelShape, PlanSettings
from qlora_studio.core.words import gib
from qlora_studio.planner.estimate import total_bytes, unquantised_bytes
from qlora_studio.planner.families import count_adapter_weights, list_linears
from qlora_studio.planner.gpu import driver_problem, read_gpus
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES

OLDEST_CAPABILITY = (6, 0)
"""Pascal; bitsandbytes has no 4-bit kernels for what is older."""
BF16_CAPABILITY = (8, 0)
OLDEST_DRIVER = 525
"""The first driver branch that runs CUDA 12."""
LITTLE_FREE = 0.75
"""Share of a card that should be free before a run."""
RUN_BYTES = 2 * GIB
"""Room for a run: checkpoints, adapter, journal, and an export of the adapter."""
CHECKPOINT_COPIES = 3
"""Two checkpoints that are kept and one that is being written."""


def check_machine(home: Path, shape: ModelShape | None = None) -> list[Check]:
    """Everything that can be told without torch. With a shape, whether disk and memory do for that model."""
    gpus = read_gpus()
    checks = [_check_python(), *check_cards(gpus, driver_problem() if not gpus else "")]
    if not gpus:
        checks.append(_check_memory())
    checks.append(check_disk(home, shutil.disk_usage(_existing(home)).free, shape))
    return checks


def check_cards(gpus: list[GpuInfo], problem: str) -> list[Check]:
    """The cards: whether there is one, its driver, its generation, its memory and who holds it."""
    if not gpus:
        return [
            Check(
                name="Graphics card",
                state="warn",
                says=f"No NVIDIA card answers: {problem or 'the driver lists none.'}",
                remedy="Training runs on the processor, slowly. With a card, install its driver and look again.",
            )
        ]
    return [check for gpu in gpus for check in (*_check_card(gpu), *_check_free(gpu))]


def check_disk(home: Path, free_bytes: int, shape: ModelShape | None) -> Check:
    """Free space against what a run of this model needs: the model in 16 bit, checkpoints, a merged export."""
    if shape is None:
        needed, whose = RUN_BYTES, "a run"
    else:
        needed, whose = disk_need(shape), f"{shape.name}, its run and a merged export"
    says = f"{gib(free_bytes)} free at {home}; {whose} can take {gib(needed)}."
    if free_bytes >= needed:
        return Check(name="Disk", state="ok", says=says)
    state = "bad" if free_bytes < RUN_BYTES else "warn"
    remedy = "Free some space, or set QLORA_STUDIO_HOME to a folder on a larger disk."
    return Check(name="Disk", state=state, says=says, remedy=remedy)


def disk_need(shape: ModelShape, rank: int = 64) -> int:
    """Bytes on disk: the model in 16 bit, a merged copy of it, checkpoints with optimizer states."""
    linears = 2 * sum(linear.weights * linear.count for linear in list_linears(shape))
    model = linears + unquantised_bytes(shape, PlanSettings())
    return 2 * model + CHECKPOINT_COPIES * 12 * count_adapter_weights(shape, rank)


def _check_python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check(name="Python", state="ok", says=f"Python {version} on {sys.platform}.")


def _check_card(gpu: GpuInfo) -> Iterator[Check]:
    capability = gpu.compute_capability
    said = f"{gpu.name}, {gib(gpu.total_bytes)}"
    if capability is None:
        yield Check(name="Graphics card", state="ok", says=f"{said}; its driver does not tell its compute capability.")
    elif capability < OLDEST_CAPABILITY:
        yield Check(
            name="Graphics card",
            state="bad",
            says=f"{said}, compute capability {capability[0]}.{capability[1]}: too old for 4-bit kernels.",
            remedy="Use a card from 2016 or later (Pascal, compute capability 6.0).",
        )
    else:
        kind = "bf16" if capability >= BF16_CAPABILITY else "fp16: this card has no bf16"
        yield Check(
            name="Graphics card",
            state="ok",
            says=f"{said}, compute capability {capability[0]}.{capability[1]}, computes in {kind}.",
        )
    branch = gpu.driver.split(".")[0]
    if branch.isdigit() and int(branch) < OLDEST_DRIVER:
        yield Check(
            name="Driver",
            state="bad",
            says=f"Driver {gpu.driver} is too old for CUDA 12.",
            remedy=f"Install driver {OLDEST_DRIVER} or later.",
        )
    else:
        yield Check(name="Driver", state="ok", says=f"Driver {gpu.driver or 'of unknown version'}.")


def _check_free(gpu: GpuInfo) -> Iterator[Check]:
    """Free memory, and by whom the rest is held."""
    held = [
        f"{process.name} ({gib(process.used_bytes)})" if process.used_bytes else process.name
        for process in gpu.processes
    ]
    says = f"{gib(gpu.free_bytes)} of {gib(gpu.total_bytes)} free."
    if held:
        says = f"{says[:-1]}; in use by {', '.join(held)}."
    if gpu.free_bytes >= LITTLE_FREE * gpu.total_bytes:
        yield Check(name="Card memory", state="ok", says=says)
        return
    remedy = f"Close {held[0]} before a run." if held else "Close other programs that use the card before a run."
    yield Check(name="Card memory", state="warn", says=says, remedy=remedy)


def _check_memory() -> Check:
    """The computer's memory, where it stands in for a card's."""
    import psutil

    memory = psutil.virtual_memory()
    needed = total_bytes(REFERENCE_SHAPES["SmolLM2-135M"], PlanSettings(device="cpu", micro_batch_tokens=512))
    says = f"{gib(memory.available)} of {gib(memory.total)} available; the small model takes {gib(needed)}."
    if memory.available >= needed:
        return Check(name="Memory", state="ok", says=says)
    return Check(name="Memory", state="bad", says=says, remedy="Close other programs.")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(place for place in (folder, *folder.parents) if place.exists())
