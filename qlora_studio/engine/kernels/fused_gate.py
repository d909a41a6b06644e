"""Whether the elementwise work of a gated MLP takes one kernel each way: on a card, where Triton is and agrees with torch.

Triton is no dependency; torch's builds for CUDA on Linux bring it. It compiles where it runs, so it is tried there, with
small tensors: what is missing, raises or computes something else leaves everything to torch's own kernels.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch

from qlora_studio.engine.kernels.gated_mlp import Activation

VARIABLE = "QLORA_STUDIO_TRITON"
"""Set to 0 it leaves Triton out."""
FUSED_ON = ("cuda",)
"""Kinds of devices on which it is tried."""
ROWS, INNER = 5, 1040
"""Of the tensors it is tried with: the last block of a row is not full, and rows lie as aligned as in a model."""


class GateKernels(Protocol):
    """The two kernels, for an activation by its name; `triton_gate` has them."""

    def product(self, gate: torch.Tensor, up: torch.Tensor, name: str) -> torch.Tensor: ...

    def gradients_(self, inside: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, name: str) -> None: ...


def import_kernels() -> GateKernels:
    """Imports Triton. Raises whatever its import raises."""
    from qlora_studio.engine.kernels import triton_gate

    return triton_gate


@dataclass(frozen=True, slots=True)
class FusedActivation(Activation):
    """An activation whose product with up takes one kernel each way where those work. Tried once for each dtype.

    It is tried at the first product: what only answers never compiles anything, and tensors of dry runs never get here.
    """

    load: Callable[[], GateKernels] = import_kernels
    found: dict[tuple[torch.device, torch.dtype], GateKernels | str] = field(
        default_factory=dict, compare=False, repr=False
    )
    """The kernels of each device and dtype, or why there are none."""

    @property
    def is_fused(self) -> bool:
        """Whether it has been tried and found to work, on any device."""
        return any(not isinstance(kernels, str) for kernels in self.found.values())

    def product(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        kernels = self._kernels_for(gate, up)
        return Activation.product(self, gate, up) if kernels is None else kernels.product(gate, up, self.name)

    def gradients_(self, inside: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> None:
        kernels = self._kernels_for(gate, up, inside)
        if kernels is None:
            return Activation.gradients_(self, inside, gate, up)
        kernels.gradients_(inside, gate, up, self.name)
        torch.autograd.graph.increment_version((gate, up))  # as torch's own do: a second backward pass is refused by it

    def _kernels_for(self, gate: torch.Tensor, *others: torch.Tensor) -> GateKernels | None:
        device, dtype = gate.device, gate.dtype
        for one in (gate, *others):
            plain = type(one) is torch.Tensor and one.device.type in FUSED_ON  # a fake tensor has a type of its own
            if not plain or one.dim() != 2 or one.stride(1) != 1 or (one.device, one.dtype) != (device, dtype):
                return None
        if (device, dtype) not in self.found:
            self.found[device, dtype] = try_kernels(self, device, dtype, self.load)
        kernels = self.found[device, dtype]
        return None if isinstance(kernels, str) else kernels


def fuse(activation: Activation) -> FusedActivation:
    """The same activation, with one kernel each way where that works."""
    return FusedActivation(activation.name, activation.of, activation.gradient)


def try_kernels(
    activation: Activation,
    device: torch.device,
    dtype: torch.dtype,
    load: Callable[[], GateKernels] = import_kernels,
) -> GateKernels | str:
    """The kernels, compared with torch's own on this device in this dtype; or why they are not used, as half a sentence.

    Raises an OutOfMemoryError only: where memory is short, nothing is learnt about the kernels.
    """
    if os.environ.get(VARIABLE) == "0":
        return f"{VARIABLE} is 0"
    try:
        kernels = load()
        return kernels if agrees(kernels, activation, device, dtype) else "Triton's kernels give other numbers"
    except torch.OutOfMemoryError:
        raise
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    except Exception as error:  # of a compiler and a driver: anything may come, and nothing here needs them
        return f"Triton does not work here: {(str(error).strip().splitlines() or [type(error).__name__])[0][:200]}"


def agrees(kernels: GateKernels, activation: Activation, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether both kernels give torch's own numbers, to one step of the dtype. Torch computes them in fp64: its own fp32
    is further off where gelu_tanh is flat."""
    generator = torch.Generator("cpu").manual_seed(0)

    def draw(inner: int) -> torch.Tensor:
        return torch.randn(ROWS, inner, generator=generator, device="cpu").mul_(3).to(device, dtype)

    halves, inside = draw(2 * INNER), draw(INNER)
    gate, up = halves.chunk(2, dim=-1)
    exact_gate, exact_up = gate.double(), up.double()
    exact_inside = inside.double()
    with torch.no_grad():
        pairs = [(kernels.product(gate, up, activation.name), Activation.product(activation, exact_gate, exact_up))]
        kernels.gradients_(inside, gate, up, activation.name)
        Activation.gradients_(activation, exact_inside, exact_gate, exact_up)
    pairs += [(gate, exact_gate), (up, exact_up)]
    step = max(torch.finfo(dtype).eps, 1e-5)  # fp32 on a card: a fast exponential is right to some last digits
    return all(bool(((one.double() - other).abs() <= step * (1 + other.abs())).all()) for one, other in pairs)
