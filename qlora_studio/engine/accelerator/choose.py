"""Which accelerator a process computes on. A new kind is one file beside this one and one line here."""

from __future__ import annotations

from qlora_studio.engine.accelerator.cpu import CpuAccelerator
from qlora_studio.engine.accelerator.cuda import CudaAccelerator
from qlora_studio.engine.accelerator.protocol import Accelerator

ACCELERATORS = (CudaAccelerator, CpuAccelerator)
"""In the order in which they are preferred; the last is always there."""


def choose_accelerator() -> Accelerator:
    """The first that is there."""
    return next(kind for kind in ACCELERATORS if kind.is_available())()
