"""RMS norm that keeps its input as it is and one number a row, with its gradient written by hand.

transformers computes it from fp32 copies in seven kernels, and autograd keeps one of the copies: 4 bytes a number of
every norm's input, where 2 are there already. Which norms of a model are of this kind is found by what they compute.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

NUMBERS_AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 22}
"""Numbers that are in fp32 at one moment: a norm is computed in blocks of rows."""
ONE_STEP = 2**-7
"""The distance of neighbouring bf16 numbers, relative: fp32 sums in another order may round to the other one."""


@dataclass(frozen=True, slots=True)
class NormKind:
    """How a norm applies its weight."""

    offset: float
    """What is added to the weight: 1 in Gemma, whose weights are stored around zero."""
    rounds_first: bool
    """Whether the normed row returns to the compute format before it is multiplied by the weight."""


KINDS = (NormKind(0.0, True), NormKind(0.0, False), NormKind(1.0, False), NormKind(1.0, True))
EPSILON = "variance_epsilon"
"""What the number under the root is called in most classes; `eps` in the others."""


class RmsNorm(torch.autograd.Function):
    """`x / sqrt(mean(x²) + eps) · (offset + weight)` along the last dimension. Zhang and Sennrich 2019, arXiv 1910.07467.

    The weight is frozen and gets no gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, kind: NormKind) -> torch.Tensor:
        order = memory_order(x)
        rows = as_rows(x, order)  # (rows, width)
        if has_fused_kernel(x, kind):
            out, scale = torch.ops.aten._fused_rms_norm(rows, [rows.shape[-1]], weight, eps)
        else:
            out, scale = torch.empty_like(rows), rows.new_empty(len(rows), 1, dtype=torch.float32)
            for part in blocks(rows):
                out[part], scale[part] = norm_rows(rows[part], weight, eps, kind)
        ctx.save_for_backward(x, scale, weight)
        ctx.kind, ctx.order = kind, order
        return from_rows(out, x, order)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        x, scale, weight = ctx.saved_tensors  # scale (rows, 1)
        rows, gradient = as_rows(x, ctx.order), as_rows(grads[0], ctx.order)
        if has_fused_kernel(x, ctx.kind):
            fused = torch.ops.aten._fused_rms_norm_backward
            dx, _ = fused(gradient.contiguous(), rows, [rows.shape[-1]], scale, weight, [True, False])
            return from_rows(dx, x, ctx.order), None, None, None
        dx, factor = torch.empty_like(rows), weight.float() + ctx.kind.offset
        for part in blocks(rows):
            dx[part] = norm_gradient(gradient[part], rows[part], scale[part], factor)
        return from_rows(dx, x, ctx.order), None, None, None


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, kind: NormKind) -> torch.Tensor:
    """The same numbers; where no gradient will be wanted of few rows, as in each token of an answer, without what it costs."""
    if torch.is_grad_enabled() or has_fused_kernel(x, kind) or x.numel() > most_numbers(x):
        out: torch.Tensor = RmsNorm.apply(x, weight, eps, kind)  # type: ignore[no-untyped-call]
        return out
    return norm_rows(x, weight, eps, kind)[0]


def memory_order(x: torch.Tensor) -> list[int]:
    """The dimensions of x as they lie in memory, the last one last.

    What is normed keeps this layout, as elementwise work does: attention over heads that were moved would copy.
    """
    strides = x.stride()
    return [*sorted(range(x.dim() - 1), key=lambda dim: -strides[dim]), x.dim() - 1]


def as_rows(x: torch.Tensor, order: list[int]) -> torch.Tensor:
    """x as (rows, width), without a copy where the order is that of its memory."""
    return x.permute(order).reshape(-1, x.shape[-1])


def from_rows(rows: torch.Tensor, x: torch.Tensor, order: list[int]) -> torch.Tensor:
    """Rows in the shape of x again."""
    whole = rows.view([x.shape[dim] for dim in order])
    return whole.permute([order.index(dim) for dim in range(x.dim())])


def has_fused_kernel(x: torch.Tensor, kind: NormKind) -> bool:
    """Whether torch has this norm in one kernel: on a card, and only for a plain weight."""
    return x.device.type == "cuda" and kind.offset == 0


def blocks(rows: torch.Tensor) -> list[slice]:
    """Slices of rows (rows, width) that hold at most NUMBERS_AT_ONCE."""
    step = max(1, most_numbers(rows) // rows.shape[-1])
    return [slice(start, start + step) for start in range(0, len(rows), step)]


def most_numbers(x: torch.Tensor) -> int:
    return NUMBERS_AT_ONCE.get(x.device.type, NUMBERS_AT_ONCE["cuda"])


def norm_rows(
    rows: torch.Tensor, weight: torch.Tensor, eps: float, kind: NormKind
) -> tuple[torch.Tensor, torch.Tensor]:
    """The normed rows (…, width) in their own format, and 1 / root mean square of each in fp32 (…, 1)."""
    normed = rows.to(torch.float32, copy=True)
    scale = torch.linalg.vector_norm(normed, dim=-1, keepdim=True).square_()
    scale = scale.div_(rows.shape[-1]).add_(eps).rsqrt_()
    normed.mul_(scale)
    if kind.rounds_first:
        return normed.to(rows.dtype).mul_(weight + kind.offset if kind.offset else weight), scale
    return normed.mul_(weight.float() + kind.offset).to(rows.dtype), scale


def norm_gradient(
    gradient: torch.Tensor, rows: torch.Tensor, scale: torch.Tensor, factor: torch.Tensor
) -> torch.Tensor:
    """`scale · (g·w - x̂ · mean(g·w · x̂))` for x̂ the normed rows; in fp32, (rows, width)."""
    normed = rows.to(torch.float32, copy=True).mul_(scale)
    weighed = gradient.to(torch.float32, copy=True).mul_(factor)
    mean = torch.linalg.vecdot(weighed, normed).div_(-rows.shape[-1]).unsqueeze(-1)
    return weighed.addcmul_(normed, mean).mul_(scale)


Kernel = Callable[[torch.Tensor, torch.Tensor, float, NormKind], torch.Tensor]


def replace_norms(model: nn.Module, kernel: Kernel = rms_norm) -> int:
    """Gives every RMS norm of a known kind this kernel, of (x, weight, eps, kind); returns how many there are."""
    count, kinds = 0, dict[type[nn.Module], NormKind | None]()
    for module in model.modules():
        if (eps := epsilon_of(module)) is None:
            continue
        if type(module) not in kinds:
            plain = {name: value for name, value in vars(module).items() if isinstance(value, bool | int | float)}
            kinds[type(module)] = find_kind(type(module), EPSILON if hasattr(module, EPSILON) else "eps", plain)
        if (kind := kinds[type(module)]) is None:
            continue
        replaced: Any = module
        replaced.forward = types.MethodType(_forward_of(kernel, eps, kind), module)
        count += 1
    return count


def _forward_of(kernel: Kernel, eps: float, kind: NormKind) -> Callable[[Any, torch.Tensor], torch.Tensor]:
    def forward(module: Any, x: torch.Tensor) -> torch.Tensor:
        if module.weight.requires_grad or module.weight.dtype != x.dtype:
            plain: torch.Tensor = type(module).forward(module, x)
            return plain
        return kernel(x, module.weight, eps, kind)

    return forward


def epsilon_of(module: nn.Module) -> float | None:
    """The number under the root, of a module that has one vector as its only parameter and nothing else."""
    own = dict(module.named_parameters())
    if list(own) != ["weight"] or own["weight"].dim() != 1 or dict(module.named_buffers()):
        return None
    eps = getattr(module, EPSILON, getattr(module, "eps", None))
    return float(eps) if isinstance(eps, float | int) else None


def find_kind(norm: type[nn.Module], eps_name: str, plain: Mapping[str, float] | None = None) -> NormKind | None:
    """The kind of a class of norms, by what its forward makes of some numbers; None where it is no RMS norm.

    Asked of a copy with real numbers, because a dry run's model has none; `plain` are the other numbers and switches that
    a norm of this class has.
    """
    with unset_fake_temporarily():
        generator = torch.Generator("cpu").manual_seed(0)
        probe: Any = norm.__new__(norm)
        nn.Module.__init__(probe)
        vars(probe).update(plain or {})
        x = torch.randn(4, 64, generator=generator, device="cpu").add_(0.5).bfloat16()
        probe.weight = nn.Parameter(torch.randn(64, generator=generator, device="cpu").bfloat16(), requires_grad=False)
        setattr(probe, eps_name, 1e-2)
        try:
            wanted = norm.forward(probe, x)
        except Exception:  # a class of any kind, given a body that it does not expect
            return None
        if not isinstance(wanted, torch.Tensor) or wanted.shape != x.shape or wanted.dtype != x.dtype:
            return None
        distances = {kind: _distance(norm_rows(x, probe.weight, 1e-2, kind)[0], wanted) for kind in KINDS}
    nearest = min(KINDS, key=lambda kind: distances[kind])
    return nearest if distances[nearest][0] <= ONE_STEP else None


def _distance(found: torch.Tensor, wanted: torch.Tensor) -> tuple[float, float]:
    """The largest relative difference, and the sum of all."""
    pairs = zip(found.flatten().tolist(), wanted.flatten().tolist(), strict=True)
    differences = [abs(one - other) / max(abs(other), 1e-3) for one, other in pairs]
    return max(differences), sum(differences)
