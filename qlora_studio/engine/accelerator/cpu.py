"""The computer's processor and memory."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Callable, Mapping

import psutil
import torch

from qlora_studio.core.errors import StudioError
from qlora_studio.engine.accelerator.attention import find_kernels
from qlora_studio.engine.accelerator.formats import DTYPES
from qlora_studio.engine.accelerator.protocol import Peak, Wait

MALLOPT_TRIM_THRESHOLD, MALLOPT_MMAP_THRESHOLD = -1, -3  # glibc's mallopt(3)


class CpuAccelerator:
    """Always there, and the slowest."""

    name = "cpu"
    label = "the processor"
    device = torch.device("cpu")
    pins_memory = False
    release_every_steps = 4
    """Rows of ever new lengths leave holes in the heap."""

    @classmethod
    def is_available(cls) -> bool:
        return True

    @property
    def arithmetic(self) -> str:
        return f"a processor with {torch.backends.cpu.get_cpu_capability()} and {torch.get_num_threads()} threads"

    def find_build_problem(self) -> str | None:
        return None

    def prepare(self) -> None:
        """Lets glibc reuse the large buffers that dequantisation takes and returns for every layer.

        Without it each is mapped and faulted in anew, which dominates 4-bit work on a CPU: docs/speed.md.
        """
        if (libc := _glibc()) is not None:
            libc.mallopt(MALLOPT_MMAP_THRESHOLD, 1 << 30)
            libc.mallopt(MALLOPT_TRIM_THRESHOLD, 512 << 20)

    def cap(self, budget_bytes: int) -> None:
        """Nothing: a process cannot be kept from memory by its allocator."""

    def peak(self) -> Peak:
        """The most this process has ever had resident; that is all the system tells."""
        resident = _peak_resident_bytes()
        return Peak(resident, resident)

    def reset_peak(self) -> None:
        """Nothing: the system's figure cannot be reset."""

    def release(self) -> None:
        gc.collect()
        if (libc := _glibc()) is not None:
            libc.malloc_trim(0)  # freed memory stays in glibc's heap otherwise, and counts as this process's

    def synchronise(self) -> None:
        """Nothing: every operation is done when it returns."""

    def run_beside(self, copies: Callable[[], None]) -> Wait:
        copies()
        return lambda: None

    def random_state(self) -> dict[str, torch.Tensor]:
        return {"cpu": torch.get_rng_state()}

    def set_random_state(self, states: Mapping[str, torch.Tensor]) -> None:
        if "cpu" in states:
            torch.set_rng_state(states["cpu"])

    def choose_dtype(self, compute: str) -> torch.dtype:
        """`auto` is bf16 where the processor multiplies in it, else fp32."""
        if compute == "fp16":
            raise StudioError(
                "This machine has no card, and fp16 is not for processors.",
                "Choose bf16, fp32 or auto.",
                field="model.compute_dtype",
            )
        if compute != "auto":
            return DTYPES[compute]
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else torch.float32

    def attention_kernels(self, dtype: torch.dtype, *, grouped: bool) -> tuple[str, ...]:
        return find_kernels(self.device, dtype, grouped=grouped)


def _peak_resident_bytes() -> int:
    if os.name == "nt":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _glibc() -> ctypes.CDLL | None:
    """The C library where it is glibc; another one is slower at this, not wrong."""
    try:
        libc = ctypes.CDLL("libc.so.6") if sys.platform == "linux" else None
    except OSError:
        return None
    return libc if libc is not None and hasattr(libc, "malloc_trim") else None
