"""The most bytes that a piece of work on a CPU holds at once, as torch's allocator itself counts them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def peak_of(work: Callable[[], object]) -> int:
    """Bytes held at the worst moment of `work` on top of what was held before it.

    From every allocation and release that torch reports, kernels' scratch memory included. What `work` returns is
    dropped before this returns.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    results = profiler.profiler.kineto_results
    held = [
        (event.start_ns(), index, event.nbytes())
        for index, event in enumerate(results.events())
        if event.name() == "[memory]"
    ]
    now = most = 0
    for _, _, size in sorted(held):
        now += size
        most = max(most, now)
    return most


def bytes_of(tensors: list[torch.Tensor]) -> int:
    """Bytes of the storages of these tensors, each storage once."""
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())
