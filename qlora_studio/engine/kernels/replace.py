"""Puts the kernels into a loaded model: by what its modules compute, never by the family's name.

A module whose mathematics is not recognised keeps the forward that transformers and PEFT gave it.
"""

from __future__ import annotations

import types
from typing import Any, Protocol

import torch
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from qlora_studio.engine.kernels.fused_gate import FusedActivation, fuse
from qlora_studio.engine.kernels.gated_mlp import ACTIVATIONS, Activation, GatedParts, gated_mlp
from qlora_studio.engine.kernels.linear import as_product, find_more
from qlora_studio.engine.kernels.lora import replace_lora_forwards, report_slow_layers
from qlora_studio.engine.kernels.norm import replace_norms
from qlora_studio.engine.kernels.rotary import replace_rotations

SPLIT, FUSED = ("gate_proj", "up_proj"), ("gate_up_proj",)
TOLERANCE = 1e-5


def replace_forwards(model: nn.Module) -> None:
    """The kernels of this folder in every module that they are for."""
    replace_lora_forwards(model)
    replace_norms(model)
    replace_rotations(model)
    replace_gated_mlps(model)


class MlpKernel(Protocol):
    """Computes a gated MLP of x (..., width)."""

    def __call__(self, x: torch.Tensor, parts: GatedParts, *, tiled: bool) -> torch.Tensor: ...


def replace_gated_mlps(model: nn.Module, kernel: MlpKernel = gated_mlp) -> int:
    """Gives every gated MLP the forward that keeps less; returns how many there are."""
    count = 0
    fused = {activation.name: fuse(activation) for activation in ACTIVATIONS}  # one of each: it is tried once a model
    for module in model.modules():
        names = _first_names(module)
        activation = find_activation(module) if names is not None else None
        if names is None or activation is None:
            continue
        replaced: Any = module
        replaced.forward = types.MethodType(_forward_of(kernel, names, fused[activation.name]), module)
        replaced.tiled = False
        replaced.gate_activation = fused[activation.name]
        count += 1
    return count


def name_gate_kernels(model: nn.Module) -> str | None:
    """Whose kernels do the elementwise work of gated MLPs, as far as they were tried; None where no MLP has ours."""
    activations = [
        activation
        for module in model.modules()
        if isinstance(activation := getattr(module, "gate_activation", None), FusedActivation)
    ]
    if not activations:
        return None
    return "Triton's kernels" if any(one.is_fused for one in activations) else "torch's kernels"


def report_slow_paths(model: nn.Module) -> str | None:
    """Which adapted layers and gated MLPs do not run on the kernels of this folder, and why; None where all do."""
    sentences = [report_slow_layers(model)]
    mlps = [module for module in model.modules() if hasattr(module, "tiled") and _first_names(module) is not None]
    layers = [getattr(module, name) for module in mlps for name in (*(_first_names(module) or ()), "down_proj")]
    reasons = {reason for reason in map(find_more, layers) if reason}
    if reasons:
        sentences.append(f"Gated MLPs keep more, because their layers have {' and '.join(sorted(reasons))}.")
    return " ".join(part for part in sentences if part) or None


def tile_mlps(model: nn.Module, tiled: bool) -> None:
    """Whether every gated MLP keeps its input alone and computes the rest again in tiles."""
    for module in model.modules():
        if hasattr(module, "tiled") and _first_names(module) is not None:
            module.tiled = tiled  # type: ignore[assignment]  # a plain attribute, no parameter


def can_tile(model: nn.Module) -> bool:
    """Whether any gated MLP could be computed in tiles as it is now: not with dropout or DoRA."""
    mlps = [module for module in model.modules() if hasattr(module, "tiled")]
    found = [[as_product(getattr(mlp, name)) for name in (*(_first_names(mlp) or ()), "down_proj")] for mlp in mlps]
    return any(all(product is not None and not product.dropout for product in products) for products in found)


def _forward_of(kernel: MlpKernel, names: tuple[str, ...], activation: Activation) -> Any:
    def forward(module: Any, x: torch.Tensor) -> torch.Tensor:
        parts = _parts_of(module, names, activation) if torch.is_grad_enabled() else None
        if parts is None:
            plain: torch.Tensor = type(module).forward(module, x)
            return plain
        return kernel(x, parts, tiled=module.tiled and not any(product.dropout for product in parts.products))

    return forward


def _parts_of(module: Any, names: tuple[str, ...], activation: Activation) -> GatedParts | None:
    """The MLP as plain arithmetic; None while one of its layers is more than that, as with DoRA."""
    products = [as_product(getattr(module, name)) for name in (*names, "down_proj")]
    found = [product for product in products if product is not None]
    if len(found) != len(products):
        return None
    return GatedParts(tuple(found[:-1]), found[-1], activation)


def _first_names(module: nn.Module) -> tuple[str, ...] | None:
    """The layers in front of the product, of a module that is laid out as a gated MLP."""
    children = dict(module.named_children())
    if "down_proj" not in children:
        return None
    return next((names for names in (SPLIT, FUSED) if all(name in children for name in names)), None)


def find_activation(module: nn.Module) -> Activation | None:
    """The activation of a gated MLP, if its forward computes `down(act(gate(x)) · up(x))`; None where it does not."""
    act = getattr(module, "act_fn", getattr(module, "activation_fn", None))
    names = _first_names(module)
    return None if names is None or act is None else _compare(type(module), names, act)


def _compare(kind: type[nn.Module], names: tuple[str, ...], act: Any) -> Activation | None:
    """Asked of a copy of the class with small layers of real numbers, because a dry run's model has none."""
    with unset_fake_temporarily(), torch.no_grad():
        generator = torch.Generator("cpu").manual_seed(0)

        def linear(inputs: int, outputs: int) -> nn.Linear:
            layer = nn.Linear(inputs, outputs, bias=False, device="cpu", dtype=torch.float32)
            layer.weight.normal_(generator=generator)
            return layer

        probe: Any = kind.__new__(kind)
        nn.Module.__init__(probe)
        for name in names:
            setattr(probe, name, linear(4, 12 // len(names)))
        probe.down_proj, probe.act_fn, probe.activation_fn = linear(6, 4), act, act
        x = torch.randn(5, 4, generator=generator, device="cpu")
        try:
            wanted = kind.forward(probe, x)
        except Exception:  # a class of any kind, given a body that it does not expect
            return None
        if not isinstance(wanted, torch.Tensor):
            return None
        for activation in ACTIVATIONS:
            outs = [getattr(probe, name)(x) for name in names]
            gate, up = outs if len(outs) == 2 else outs[0].chunk(2, dim=-1)
            if _close(probe.down_proj(activation.of(gate) * up), wanted):
                return activation
    return None


def _close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    pairs = zip(found.flatten().tolist(), wanted.flatten().tolist(), strict=True)
    return all(abs(one - other) <= TOLERANCE * (1 + abs(other)) for one, other in pairs)
