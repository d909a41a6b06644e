"""The computer at one moment, as far as plans depend on it. Read once by `planner.machine`, then a value like any other."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from qlora_studio.core.plan import GpuInfo


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TorchBuild(_Value):
    """The torch that is installed, as its files say without importing it."""

    version: str
    cuda: str = ""
    """The CUDA it was built for, such as `13.0`; empty for a build for processors."""


class Speed(_Value):
    """How fast a run on this machine really was."""

    model: str
    weights: int
    """Numbers in the matrices of the model it trained."""
    flops_per_second: float
    """Arithmetic of the model in useful steps, divided by the whole time of the step."""


class Machine(_Value):
    """Cards, memory, processor, disk and what earlier runs measured here. Sizes in bytes."""

    cards: tuple[GpuInfo, ...] = ()
    """The cards a run may use, the one it takes first."""
    memory_bytes: int = 0
    memory_available_bytes: int = 0
    cores: int = 1
    """Physical cores of the processor."""
    cpu_bf16: bool = False
    """Whether the processor multiplies bf16 itself; else fp32 is faster."""
    disk_free_bytes: int = 0
    """Where the home folder lies."""
    system: Literal["linux", "wsl", "windows", "macos"] = "linux"
    torch: TorchBuild | None = None
    """None where that is not known; a plan then trusts that it fits the card."""
    correction: float = 1.0
    """What earlier runs on this card or processor took of activations, loss and workspace, as a share of the plan."""
    speeds: tuple[Speed, ...] = ()
    """What earlier runs on this card or processor measured, the newest first."""

    @property
    def card(self) -> GpuInfo | None:
        """The card a run would take; None where it computes on the processor."""
        return self.cards[0] if self.cards else None
