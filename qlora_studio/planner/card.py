"""Whether the installed torch can use the card at all: what it was built for against driver and compute capability."""

from __future__ import annotations

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.doctor import PROCESSOR_INSTEAD, install_torch
from qlora_studio.core.errors import Problem
from qlora_studio.core.machine import Machine, TorchBuild
from qlora_studio.core.plan import GpuInfo
from qlora_studio.planner.machine import goes_by

OLDEST_DRIVER = {13: 580, 12: 525}
"""First driver branch for a CUDA major version (NVIDIA, CUDA Toolkit release notes, "minor version compatibility")."""
OLDEST_CAPABILITY = {13: (7, 5), 12: (6, 0)}
"""CUDA 13 compiles for Turing and later (NVIDIA, CUDA 13.0 release notes); bitsandbytes' 4-bit kernels want Pascal."""


def find_card_problem(machine: Machine) -> Problem | None:
    """Why a run could not use the machine's card although there is one; None where nothing speaks against it."""
    card, build = machine.card, machine.torch
    if card is None or build is None:
        return None
    if not build.cuda:
        return Problem(
            f"torch {build.version} is built for processors only, but this computer has {card.name}.",
            f"{install_torch(build.version)} {PROCESSOR_INSTEAD}",
        )
    return find_driver_problem(card, build) or find_capability_problem(card, build)


def find_choice_problem(config: TrainConfig, machine: Machine) -> Problem | None:
    """That the card a person chose is not there; None where it is, or where none was chosen."""
    named = config.memory.card
    if named is None or (machine.card is not None and goes_by(machine.card, named)):
        return None
    there = ", ".join(f"{card.index} ({card.name})" for card in machine.cards) or "none"
    return Problem(
        f"There is no card '{named}'.",
        f"This computer has: {there}. Leave it empty for the first.",
        field="memory.card",
    )


def find_driver_problem(card: GpuInfo, build: TorchBuild) -> Problem | None:
    """A driver that is older than the build's CUDA wants."""
    needed, branch = OLDEST_DRIVER.get(_major(build), 0), card.driver.partition(".")[0]
    if not branch.isdigit() or int(branch) >= needed:
        return None
    return Problem(
        f"Driver {card.driver} is too old for torch {build.version}, which is built for CUDA {build.cuda}.",
        f"Install NVIDIA driver {needed} or later. {PROCESSOR_INSTEAD}",
    )


def find_capability_problem(card: GpuInfo, build: TorchBuild | None) -> Problem | None:
    """A card that is older than what the build has kernels for."""
    major = _major(build) if build else min(OLDEST_CAPABILITY)
    has, needed = card.compute_capability, OLDEST_CAPABILITY.get(major, (0, 0))
    if has is None or has >= needed:
        return None
    built = f"the 4-bit kernels under CUDA {build.cuda}" if build else "4-bit kernels"
    return Problem(
        f"{card.name} has compute capability {has[0]}.{has[1]}, and {built} want {needed[0]}.{needed[1]} or later.",
        f"Use a newer card. {PROCESSOR_INSTEAD}",
    )


def _major(build: TorchBuild) -> int:
    major = build.cuda.partition(".")[0]
    return int(major) if major.isdigit() else 0
