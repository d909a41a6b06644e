"""An NVIDIA card, through `torch.cuda`."""

from __future__ import annotations

import gc
from collections.abc import Mapping

import torch

from qlora_studio.core.errors import StudioError
from qlora_studio.core.plan import GIB
from qlora_studio.engine.accelerator.attention import find_kernels
from qlora_studio.engine.accelerator.formats import DTYPES
from qlora_studio.engine.accelerator.protocol import Peak

FIRST_WITH_BF16 = (8, 0)
"""Compute capability of Ampere, the first with bf16 in hardware: CUDA C++ Programming Guide, table "Technical
Specifications per Compute Capability"."""


class CudaAccelerator:
    """The first card that CUDA shows this process."""

    name = "cuda"
    device = torch.device("cuda", 0)
    pins_memory = True
    release_every_steps = None

    @classmethod
    def is_available(cls) -> bool:
        return torch.cuda.is_available()

    @property
    def label(self) -> str:
        return torch.cuda.get_device_name(self.device)

    def prepare(self) -> None:
        """Nothing: the environment has set the caching allocator up before torch was imported."""

    def cap(self, budget_bytes: int) -> None:
        """Counts reserved memory: past it, an allocation raises instead of spilling into the computer's memory."""
        total_bytes = torch.cuda.get_device_properties(self.device).total_memory
        torch.cuda.set_per_process_memory_fraction(share_of_card(budget_bytes, total_bytes), self.device)

    def peak(self) -> Peak:
        return Peak(torch.cuda.max_memory_allocated(self.device), torch.cuda.max_memory_reserved(self.device))

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)

    def release(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()

    def synchronise(self) -> None:
        torch.cuda.synchronize(self.device)

    def random_state(self) -> dict[str, torch.Tensor]:
        return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state(self.device)}

    def set_random_state(self, states: Mapping[str, torch.Tensor]) -> None:
        if "cpu" in states:
            torch.set_rng_state(states["cpu"])
        if "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"], self.device)

    def choose_dtype(self, compute: str) -> torch.dtype:
        """`auto` is bf16 where the card has it, else fp16."""
        if compute != "auto":
            return DTYPES[compute]
        return torch.bfloat16 if torch.cuda.get_device_capability(self.device) >= FIRST_WITH_BF16 else torch.float16

    def attention_kernels(self, dtype: torch.dtype, *, grouped: bool) -> tuple[str, ...]:
        return find_kernels(self.device, dtype, grouped=grouped)


def share_of_card(budget_bytes: int, total_bytes: int) -> float:
    """The budget as a share of the card, at most all of it."""
    if budget_bytes <= 0:
        raise StudioError(
            f"The memory budget is {-budget_bytes / GIB:.2f} GiB less than CUDA itself takes, so no tensor would fit.",
            "Raise the memory budget, or close other programs that use the card.",
            field="memory.budget_gib",
        )
    return min(1.0, budget_bytes / total_bytes)
