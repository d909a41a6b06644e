"""What the last digits of a step depend on besides what a run records of itself: hardware, libraries, kernels.

A run that goes on elsewhere computes the same mathematics, rounded elsewhere: its curve is no longer the identical one,
and the run says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from torch import nn

from qlora_studio.engine.accelerator.protocol import Accelerator
from qlora_studio.engine.kernels.replace import name_gate_kernels

LIBRARIES = ("torch", "bitsandbytes", "transformers", "peft")

Numerics = Mapping[str, str]
"""By what it is, such as `torch` or `hardware`, what it is here."""


def read_numerics(model: nn.Module, accelerator: Accelerator) -> dict[str, str]:
    """Of this process. What kernels gated MLPs take is known once a step was computed."""
    found = {"hardware": accelerator.arithmetic, **{name: _version(name) for name in LIBRARIES}}
    if (kernels := name_gate_kernels(model)) is not None:
        found["gated MLPs"] = kernels
    return found


def describe_change(before: Numerics, now: Numerics) -> str | None:
    """That a run goes on with other numerics than it had, in a sentence; None where it does not, or nothing is known."""
    changed = [f"{name} {now[name]} instead of {was}" for name, was in before.items() if now.get(name, was) != was]
    if not changed:
        return None
    return (
        f"The run goes on with {' and '.join(changed)}: from here on the last digits of its curve may differ from those of a "
        "run that was never interrupted."
    )


@cache
def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:  # put on the path without being installed
        return "of no known version"
