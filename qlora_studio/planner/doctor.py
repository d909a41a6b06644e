"""What can be told about the machine without torch: cards, driver, memory and who holds it, disk."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from qlora_studio.core.doctor import Check
from qlora_studio.core.machine import Machine, TorchBuild
from qlora_studio.core.plan import GIB, GpuInfo, ModelShape, PlanSettings
from qlora_studio.core.words import gib
from qlora_studio.planner.budget import BF16_CAPABILITY
from qlora_studio.planner.card import find_capability_problem, find_driver_problem
from qlora_studio.planner.estimate import total_bytes, unquantised_bytes
from qlora_studio.planner.families import count_adapter_weights, list_linears
from qlora_studio.planner.gpu import driver_problem
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES

LITTLE_FREE = 0.75
"""Share of a card that should be free before a run."""
RUN_BYTES = 2 * GIB
"""Room for a run: checkpoints, adapter, journal, and an export of the adapter."""
CHECKPOINT_COPIES = 3
"""Two checkpoints that are kept and one that is being written."""


def check_machine(home: Path, machine: Machine, shape: ModelShape | None = None) -> list[Check]:
    """Everything that can be told without torch. With a shape, whether disk and memory do for that model."""
    problem = driver_problem() if machine.card is None else ""
    checks = [_check_python(), *check_cards(machine, problem)]
    if machine.card is None:
        checks.append(_check_memory(machine))
    checks.append(check_disk(home, machine.disk_free_bytes, shape))
    return checks


def check_cards(machine: Machine, problem: str) -> list[Check]:
    """The cards: whether there is one, its driver, its generation, its memory and who holds it."""
    if machine.card is None:
        return [
            Check(
                name="Graphics card",
                state="warn",
                finding=f"No NVIDIA card answers: {problem or 'the driver lists none.'}",
                remedy="Training runs on the processor, slowly. With a card, install its driver and look again.",
            )
        ]
    return [check for card in machine.cards for check in (*_check_card(card, machine.torch), *_check_free(card))]


def check_disk(home: Path, free_bytes: int, shape: ModelShape | None) -> Check:
    """Free space against what a run of this model needs: the model in 16 bit, checkpoints, a merged export."""
    if shape is None:
        needed, whose = RUN_BYTES, "a run"
    else:
        needed, whose = disk_need(shape), f"{shape.name}, its run and a merged export"
    finding = f"{gib(free_bytes)} free at {home}; {whose} can take {gib(needed)}."
    if free_bytes >= needed:
        return Check(name="Disk", state="ok", finding=finding)
    state = "bad" if free_bytes < RUN_BYTES else "warn"
    remedy = "Free some space, or set QLORA_STUDIO_HOME to a folder on a larger disk."
    return Check(name="Disk", state=state, finding=finding, remedy=remedy)


def disk_need(shape: ModelShape, rank: int = 64) -> int:
    """Bytes on disk: the model in 16 bit, a merged copy of it, checkpoints with optimizer states."""
    linears = 2 * sum(linear.weights * linear.count for linear in list_linears(shape) if linear.four_bit)
    model = linears + unquantised_bytes(shape, PlanSettings())
    return 2 * model + CHECKPOINT_COPIES * 12 * count_adapter_weights(shape, rank)


def _check_python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check(name="Python", state="ok", finding=f"Python {version} on {sys.platform}.")


def _check_card(card: GpuInfo, build: TorchBuild | None) -> Iterator[Check]:
    capability = card.compute_capability
    description = f"{card.name}, {gib(card.total_bytes)}"
    if capability is None:
        yield Check(
            name="Graphics card", state="ok", finding=f"{description}; its driver does not tell its compute capability."
        )
    elif (problem := find_capability_problem(card, build)) is not None:
        yield Check(name="Graphics card", state="bad", finding=problem.message, remedy=problem.hint)
    else:
        kind = "bf16" if capability >= BF16_CAPABILITY else "fp16: this card has no bf16"
        yield Check(
            name="Graphics card",
            state="ok",
            finding=f"{description}, compute capability {capability[0]}.{capability[1]}, computes in {kind}.",
        )
    driver = find_driver_problem(card, build) if build else None
    if driver is not None:
        yield Check(name="Driver", state="bad", finding=driver.message, remedy=driver.hint)
    else:
        yield Check(name="Driver", state="ok", finding=f"Driver {card.driver or 'of unknown version'}.")


def _check_free(gpu: GpuInfo) -> Iterator[Check]:
    """Free memory, and by whom the rest is held."""
    held = [
        f"{process.name} ({gib(process.used_bytes)})" if process.used_bytes else process.name
        for process in gpu.processes
    ]
    finding = f"{gib(gpu.free_bytes)} of {gib(gpu.total_bytes)} free."
    if held:
        finding = f"{finding[:-1]}; in use by {', '.join(held)}."
    if gpu.free_bytes >= LITTLE_FREE * gpu.total_bytes:
        yield Check(name="Card memory", state="ok", finding=finding)
        return
    remedy = f"Close {held[0]} before a run." if held else "Close other programs that use the card before a run."
    yield Check(name="Card memory", state="warn", finding=finding, remedy=remedy)


def _check_memory(machine: Machine) -> Check:
    """The computer's memory, where it stands in for a card's."""
    needed = total_bytes(REFERENCE_SHAPES["SmolLM2-135M"], PlanSettings(device="cpu", micro_batch_tokens=512))
    available, total = gib(machine.memory_available_bytes), gib(machine.memory_bytes)
    finding = f"{available} of {total} available; the small model takes {gib(needed)}."
    if machine.memory_available_bytes >= needed:
        return Check(name="Memory", state="ok", finding=finding)
    return Check(name="Memory", state="bad", finding=finding, remedy="Close other programs.")
