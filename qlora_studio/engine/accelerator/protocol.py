"""What the engine asks of the hardware it runs on. Nothing else in the engine names a kind of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

Wait = Callable[[], None]
"""Makes all work that is asked for afterwards wait for something; the host goes on."""


@dataclass(frozen=True, slots=True)
class Peak:
    """The most memory held since the peak was last reset."""

    allocated_bytes: int
    """In tensors; where an accelerator cannot tell, as much as reserved."""
    reserved_bytes: int
    """Taken from the system, the holes between tensors included."""


class Accelerator(Protocol):
    """One kind of hardware: its memory, random numbers, number formats and attention kernels."""

    @property
    def name(self) -> str:
        """The word that plans and checkpoints use: `cuda`, `cpu`."""

    @property
    def label(self) -> str:
        """What it is called, for people."""

    @property
    def arithmetic(self) -> str:
        """What the last digits of a result depend on here, in a few words: which card, or instructions and threads."""

    @property
    def device(self) -> torch.device:
        """Where tensors lie."""

    @property
    def pins_memory(self) -> bool:
        """Whether copies from the computer's memory are faster from pinned pages."""

    @property
    def release_every_steps(self) -> int | None:
        """How often freed memory must be given back during training; None where the allocator uses it again."""

    def find_build_problem(self) -> str | None:
        """Why the installed torch has no kernels for this hardware, in a sentence; None where it has."""

    def prepare(self) -> None:
        """Sets the allocator up, once per process and before anything is loaded."""

    def cap(self, budget_bytes: int) -> None:
        """Makes more than `budget_bytes` of tensors an error that can be caught, where the hardware can.

        Raises a StudioError where the budget leaves nothing for tensors.
        """

    def peak(self) -> Peak:
        """The most memory held since `reset_peak`."""

    def reset_peak(self) -> None:
        """Starts the peak anew, where that can be done."""

    def release(self) -> None:
        """Gives back what nothing refers to any more."""

    def synchronise(self) -> None:
        """Waits until all work that was asked for is done."""

    def run_beside(self, copies: Callable[[], None]) -> Wait:
        """Runs copies to or from the computer's memory behind all work asked for so far, beside what is asked for next.

        No tensor that they read or write may be let go, or changed, by work that does not wait for them.
        """

    def random_state(self) -> dict[str, torch.Tensor]:
        """The state of every generator that training draws from, by the name of its device."""

    def set_random_state(self, states: Mapping[str, torch.Tensor]) -> None:
        """Puts those states back; states of generators that are not here are left out."""

    def choose_dtype(self, compute: str) -> torch.dtype:
        """The compute dtype for `auto`, `bf16`, `fp16` or `fp32`. Raises a StudioError for one that is not for it."""

    def attention_kernels(self, dtype: torch.dtype, *, grouped: bool) -> tuple[str, ...]:
        """Which kernels of `attention.KERNELS` run here in this dtype, tried on a few tokens.

        `grouped`: with fewer heads of keys and values than of queries.
        """
