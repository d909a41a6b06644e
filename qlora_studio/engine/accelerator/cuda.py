"""An NVIDIA card, through `torch.cuda`."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch

from qlora_studio.core.errors import StudioError
from qlora_studio.core.plan import GIB
from qlora_studio.engine.accelerator.attention import find_kernels
from qlora_studio.engine.accelerator.formats import DTYPES
from qlora_studio.engine.accelerator.protocol import Peak, Wait

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

    @property
    def arithmetic(self) -> str:
        return self.label

    def find_build_problem(self) -> str | None:
        has, built = torch.cuda.get_device_capability(self.device), torch.cuda.get_arch_list()
        if has_kernels(has, built):
            return None
        return (
            f"torch {torch.__version__} is built for {', '.join(built) or 'no card'}, and {self.label} has compute "
            f"capability {has[0]}.{has[1]}."
        )

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
        self.synchronise()  # a copy that nobody waited for may be under way into what was let go
        gc.collect()
        torch.cuda.empty_cache()

    def synchronise(self) -> None:
        torch.cuda.synchronize(self.device)

    def run_beside(self, copies: Callable[[], None]) -> Wait:
        stream = self._copies
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            copies()
        done = stream.record_event()
        return lambda: torch.cuda.current_stream(self.device).wait_event(done)

    @cached_property
    def _copies(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device)

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


def has_kernels(capability: tuple[int, int], built: Sequence[str]) -> bool:
    """Whether a card of this capability runs what torch was built for, such as `sm_86` and `compute_120`.

    Kernels (`sm`) run on their own major version from their minor on; what is left to the driver to compile (`compute`),
    on every later one. CUDA C++ Programming Guide, "Binary Compatibility" and "PTX Compatibility".
    """
    for name in built:
        kind, _, digits = name.partition("_")
        number = digits.rstrip("af")  # kernels of one architecture alone, such as `sm_90a`
        if not number.isdigit():
            continue
        wanted = int(number[:-1]), int(number[-1])
        if (kind == "sm" and wanted[0] == capability[0] and wanted <= capability) or (
            kind == "compute" and wanted <= capability
        ):
            return True
    return False


def share_of_card(budget_bytes: int, total_bytes: int) -> float:
    """The budget as a share of the card, at most all of it."""
    if budget_bytes <= 0:
        raise StudioError(
            f"The memory budget is {-budget_bytes / GIB:.2f} GiB less than CUDA itself takes, so no tensor would fit.",
            "Raise the memory budget, or close other programs that use the card.",
            field="memory.budget_gib",
        )
    return min(1.0, budget_bytes / total_bytes)
