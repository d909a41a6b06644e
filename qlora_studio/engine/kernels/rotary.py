"""Rotary positions in fewer passes over memory, with their gradient written by hand. Su et al. 2021, arXiv 2104.09864.

transformers writes the halves of each head, turned, into a new tensor, multiplies twice and adds, and autograd does as much
on the way back. Here each half is added where it belongs; the gradient is the rotation by the opposite angle. Every number
is rounded where theirs is, so nothing changes to the bit. Which attention layers rotate like this is found by what the
function of their file computes; layers of another kind keep theirs.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

NAME = "apply_rotary_pos_emb"
"""What the function is called in the modules of transformers."""

Rotation = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""Of queries and keys (batch, heads, tokens, head) and cos and sin (batch, tokens, rotated part of a head)."""


class Rotate(torch.autograd.Function):
    """`[x1 · cos1 - x2 · sin1, x2 · cos2 + x1 · sin2]` for the halves x1 and x2 of each head; keeps nothing of x.

    What lies behind the rotated part of a head stays as it is.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        first, second = sin.chunk(2, dim=-1)
        return _turn(grads[0], cos, second, first, 1.0), None, None


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x (batch, heads, tokens, head) rotated by cos and sin (batch, 1, tokens, rotated part of a head)."""
    first, second = sin.chunk(2, dim=-1)
    return _turn(x, cos, first, second, -1.0)


def _turn(x: torch.Tensor, cos: torch.Tensor, first: torch.Tensor, second: torch.Tensor, sign: float) -> torch.Tensor:
    """`[x1 · cos1 + sign · x2 · first, x2 · cos2 - sign · x1 · second]` in the layout of x."""
    rotated = cos.shape[-1]
    out, half = torch.empty_like(x), rotated // 2
    torch.mul(x[..., :rotated], cos, out=out[..., :rotated])
    out[..., :half].add_(x[..., half:rotated] * first, alpha=sign)
    out[..., half:rotated].sub_(x[..., :half] * second, alpha=sign)
    if rotated < x.shape[-1]:
        out[..., rotated:] = x[..., rotated:]
    return out


def in_place_of(theirs: Rotation) -> Rotation:
    """The same as this function of transformers, which still does what is of another format than its positions."""

    def apply(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not q.dtype == k.dtype == cos.dtype == sin.dtype:
            return theirs(q, k, cos, sin, unsqueeze_dim)
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        if not torch.is_grad_enabled():
            return rotate(q, cos, sin), rotate(k, cos, sin)
        return Rotate.apply(q, cos, sin), Rotate.apply(k, cos, sin)  # type: ignore[no-untyped-call]

    return apply


def replace_rotations(model: nn.Module) -> int:
    """Gives every attention layer whose rotation is known this one; returns how many there are."""
    count = 0
    forwards: dict[type[nn.Module], types.FunctionType | None] = {}
    for module in model.modules():
        kind = type(module)
        if kind not in forwards:
            forwards[kind] = _forward_of(kind)
        if (forward := forwards[kind]) is None:
            continue
        replaced: Any = module
        replaced.forward = types.MethodType(forward, module)
        count += 1
    return count


def _forward_of(kind: type[nn.Module]) -> types.FunctionType | None:
    """The forward of a class, with this rotation in place of that of its file; the file itself is left alone."""
    plain = kind.forward
    if not isinstance(plain, types.FunctionType) or NAME not in plain.__code__.co_names:
        return None
    theirs = plain.__globals__.get(NAME)
    if theirs is None or not computes_the_same(theirs):
        return None
    names = {**plain.__globals__, NAME: in_place_of(theirs)}
    forward = types.FunctionType(plain.__code__, names, plain.__name__, plain.__defaults__, plain.__closure__)
    forward.__kwdefaults__ = plain.__kwdefaults__
    return forward


@functools.cache
def computes_the_same(theirs: Rotation) -> bool:
    """Whether a function rotates as `rotate` does, to the bit, and no part of a head where it cannot rotate a part.

    Asked with real numbers, because a dry run's model has none, and in 16 bit, which shows where it rounds.
    """
    with unset_fake_temporarily(), torch.no_grad():
        generator = torch.Generator("cpu").manual_seed(0)

        def numbers(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device="cpu").bfloat16()

        q, k, cos, sin = numbers(2, 4, 3, 8), numbers(2, 2, 3, 8), numbers(2, 3, 8), numbers(2, 3, 8)
        whole = _agrees(theirs, q, k, cos, sin)
        part = _agrees(theirs, q, k, cos[..., :4], sin[..., :4])
    return whole is True and part is not False


def _agrees(theirs: Rotation, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> bool | None:
    """None where it takes no such numbers."""
    try:
        wanted = tuple(theirs(q, k, cos, sin))
    except Exception:  # a function of any kind that has this name
        return None
    found = [rotate(one, cos.unsqueeze(1), sin.unsqueeze(1)) for one in (q, k)]
    return len(wanted) == len(found) and all(
        isinstance(other, torch.Tensor) and torch.equal(one, other) for one, other in zip(found, wanted, strict=True)
    )
