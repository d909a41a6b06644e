"""How much memory this process has held at most, on a card or on a CPU."""

from __future__ import annotations

import ctypes
import gc
import os
import sys

import psutil
import torch

MALLOPT_TRIM_THRESHOLD, MALLOPT_MMAP_THRESHOLD = -1, -3  # glibc's mallopt(3)


def prepare_allocator() -> None:
    """Lets glibc reuse the large buffers that dequantisation takes and returns for every layer.

    Without it each is mapped and faulted in anew, which dominates 4-bit work on a CPU: docs/speed.md.
    """
    if not torch.cuda.is_available() and (libc := _glibc()) is not None:
        libc.mallopt(MALLOPT_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(MALLOPT_TRIM_THRESHOLD, 512 << 20)


def _glibc() -> ctypes.CDLL | None:
    """The C library where it is glibc; another one is slower at this, not wrong."""
    try:
        libc = ctypes.CDLL("libc.so.6") if sys.platform == "linux" else None
    except OSError:
        return None
    return libc if libc is not None and hasattr(libc, "malloc_trim") else None


def peak_bytes() -> int:
    """The allocator's peak on CUDA since `reset_peak`; elsewhere the most this process has had resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if os.name == "nt":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak() -> None:
    """Starts the CUDA peak anew; a CPU process's cannot be."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def release() -> None:
    """Gives back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif (libc := _glibc()) is not None:
        libc.malloc_trim(0)  # freed memory stays in glibc's heap otherwise, and counts as this process's


def cap(budget_bytes: int) -> None:
    """Makes more than `budget_bytes` an error that can be caught, instead of a spill into shared memory. CUDA only."""
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, budget_bytes / total))
