"""The gated MLP, `down(act(gate(x)) · up(x))`, as steps of autograd that keep two of its tensors instead of four.

Autograd keeps gate, act(gate), up and their product: 8 bytes for each number of the inner width in 16 bit. Kept here are
gate and up; the other two are made again, in blocks of rows, and the gradients take the place of gate and up, which
nobody else holds. In tiles nothing of the inner width is kept: gate and up are made again as well.

What is kept is kept by a step of its own in front of the last product. A checkpoint computes a layer again until its last
kept tensor is there: so it stops in front of that product, or in front of the whole MLP where that is tiled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from qlora_studio.engine.kernels.linear import AdaptedProduct

aten = torch.ops.aten
ROWS_AT_ONCE = {"cpu": 256, "cuda": 1024}
"""Tokens whose inner tensors are made again at once: enough for a product to run at full speed."""
TILE = 1024
"""Tokens of a tile: in each the three weights are dequantised anew."""


@dataclass(frozen=True, slots=True)
class Activation:
    """An activation and, in place of the gradient that comes in, the one that goes out."""

    name: str
    of: Callable[[torch.Tensor], torch.Tensor]
    gradient: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    """(gradient, input, out)"""

    def product(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """`act(gate) · up` of both (rows, inner), as a new tensor."""
        return self.of(gate).mul_(up)

    def gradients_(self, inside: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> None:
        """The gradients of gate and up in their place, from `inside`, that of their product, which is used up."""
        active = self.of(gate).mul_(inside)
        inside.mul_(up)
        up.copy_(active)
        self.gradient(inside, gate, gate)


ACTIVATIONS = (
    Activation("silu", F.silu, lambda g, x, out: aten.silu_backward.grad_input(g, x, grad_input=out)),
    Activation(
        "gelu_tanh",
        lambda x: F.gelu(x, approximate="tanh"),
        lambda g, x, out: aten.gelu_backward.grad_input(g, x, approximate="tanh", grad_input=out),
    ),
    Activation("gelu", F.gelu, lambda g, x, out: aten.gelu_backward.grad_input(g, x, grad_input=out)),
)


@dataclass(frozen=True, slots=True)
class GatedParts:
    """What a gated MLP is made of."""

    first: tuple[AdaptedProduct, ...]
    """Gate and up, or one product whose outputs are gate and up side by side."""
    down: AdaptedProduct
    activation: Activation

    @property
    def products(self) -> tuple[AdaptedProduct, ...]:
        return (*self.first, self.down)


def gated_mlp(x: torch.Tensor, parts: GatedParts, *, tiled: bool) -> torch.Tensor:
    """The MLP of x (..., width); `tiled` keeps x alone and computes everything else again in the backward pass."""
    rows = x.reshape(-1, x.shape[-1])  # (tokens, width)
    if tiled:
        kept = _keep(rows)
        in_tiles: Callable[..., torch.Tensor] = TiledMlp.apply
        return in_tiles(kept[0], parts, kept[0].grad_fn, *weights_of(parts.products)).view(x.shape)
    side_by_side: Callable[..., tuple[torch.Tensor, ...]] = SideBySide.apply
    kept = _keep(*side_by_side(rows, parts.first, *weights_of(parts.first)))
    through: Callable[..., torch.Tensor] = GatedDown.apply
    return through(parts, kept[0].grad_fn, *weights_of((parts.down,)), *kept).view(x.shape)


def _keep(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    keep: Callable[..., tuple[torch.Tensor, ...]] = Kept.apply
    return keep(*tensors)


class Kept(torch.autograd.Function):
    """Passes tensors on and keeps them for the step behind it."""

    @staticmethod
    def forward(ctx: Any, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(*tensors)
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return grads


class SideBySide(torch.autograd.Function):
    """Products of one input, whose gradients are added where they are made."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, products: tuple[AdaptedProduct, ...], *weights: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        found = [product.forward(x) for product in products]
        ctx.save_for_backward(x, *(inner for _, inner in found))
        ctx.products = products
        return tuple(out for out, _ in found)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, *inners = ctx.saved_tensors
        sums = Sums(ctx.products)
        return (through_first(ctx.products, x, grads, inners, sums), None, *sums.of_all())


class GatedDown(torch.autograd.Function):
    """`down(act(gate) · up)`; `kept` is the node that keeps gate and up."""

    @staticmethod
    def forward(
        ctx: Any, parts: GatedParts, kept: Any, a: torch.Tensor | None, b: torch.Tensor | None, *outs: torch.Tensor
    ) -> torch.Tensor:
        ctx.parts, ctx.kept = parts, kept
        return gated_down(parts, outs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        outs, sums = ctx.kept.saved_tensors, Sums((ctx.parts.down,))
        through_down(ctx.parts, grads[0], outs, sums)
        return (None, None, *sums.of_all(), *outs)


class TiledMlp(torch.autograd.Function):
    """The MLP in tiles of rows; `kept` is the node that keeps x, or None where x needs no gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, parts: GatedParts, kept: Any, *weights: torch.Tensor | None) -> torch.Tensor:
        ctx.parts, ctx.kept = parts, kept
        if kept is None:
            ctx.save_for_backward(x)
        out = torch.empty_like(x)
        for tile in _rows(len(x), TILE):
            out[tile] = gated_down(parts, [product.forward(x[tile])[0] for product in parts.first])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        parts = ctx.parts
        (x,) = ctx.saved_tensors if ctx.kept is None else ctx.kept.saved_tensors
        sums, dx = Sums(parts.products), torch.empty_like(x)
        for tile in _rows(len(x), TILE):
            outs, inners = zip(*(product.forward(x[tile]) for product in parts.first), strict=True)
            through_down(parts, grads[0][tile], outs, sums)
            dx[tile] = through_first(parts.first, x[tile], outs, inners, sums)
            del outs, inners
        return (dx, None, None, *sums.of_all())


class Sums:
    """The gradients of A and B of some products, summed over blocks of rows in the adapter's own format."""

    def __init__(self, products: Sequence[AdaptedProduct]) -> None:
        self.products = products
        self.found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def add(self, product: AdaptedProduct, da: torch.Tensor, db: torch.Tensor) -> None:
        assert product.a is not None and product.b is not None
        if id(product) in self.found:
            for total, part in zip(self.found[id(product)], (da, db), strict=True):
                total.add_(part)
        else:
            self.found[id(product)] = da.to(product.a.dtype), db.to(product.b.dtype)

    def of_all(self) -> tuple[torch.Tensor | None, ...]:
        """In the order of `weights_of`."""
        none = (None, None)
        return tuple(one for product in self.products for one in self.found.get(id(product), none))


def weights_of(products: Sequence[AdaptedProduct]) -> tuple[torch.Tensor | None, ...]:
    """A and B of each."""
    return tuple(weight for product in products for weight in (product.a, product.b))


def gated_down(parts: GatedParts, outs: Sequence[torch.Tensor]) -> torch.Tensor:
    """`down(act(gate) · up)` for gate and up (tokens, inner) -> (tokens, width); their product is never there as a whole."""
    weight = parts.down.dense(outs[0].dtype)  # (width, inner)
    out = outs[0].new_empty(len(outs[0]), len(weight))
    mask = parts.down.mask(_gate_and_up(outs)[0])  # (tokens, inner)
    for rows in _rows(len(out), rows_at_once(out)):
        gate, up = _gate_and_up([whole[rows] for whole in outs])
        product = parts.activation.product(gate, up)
        out[rows] = parts.down.of_dense(product, weight, None if mask is None else mask[rows])
    return out


def through_down(parts: GatedParts, gradient: torch.Tensor, outs: Sequence[torch.Tensor], sums: Sums) -> None:
    """Backward through `gated_down`: the gradients of gate and up take their place in `outs`; gradient (tokens, width)."""
    weight = parts.down.dense(gradient.dtype)  # (width, inner)
    mask = parts.down.mask(_gate_and_up(outs)[0])  # (tokens, inner)
    for rows in _rows(len(gradient), rows_at_once(gradient)):
        block = Block(gradient[rows], [whole[rows] for whole in outs], None if mask is None else mask[rows])
        _block_through_down(parts, block, weight, sums)


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows on their way back through `gated_down`."""

    gradient: torch.Tensor
    """(rows, width)"""
    outs: Sequence[torch.Tensor]
    mask: torch.Tensor | None
    """(rows, inner): what dropout leaves of the adapter's input."""


def _block_through_down(parts: GatedParts, block: Block, weight: torch.Tensor, sums: Sums) -> None:
    """A function, so that what a block made is gone before the next one."""
    down, gradient = parts.down, block.gradient
    gate, up = _gate_and_up(block.outs)
    low_rank = down.low_rank_gradient(gradient)
    if low_rank is not None and down.a is not None:
        product = down.thin_out_(parts.activation.product(gate, up), block.mask)
        inner = product @ down.a.to(gradient.dtype).t()
        sums.add(down, low_rank.t() @ product, (gradient.t() @ inner).mul_(down.scale))
        del product
    inside = down.input_gradient(gradient, low_rank, weight, mask=block.mask)  # (rows, inner)
    parts.activation.gradients_(inside, gate, up)


def through_first(
    products: Sequence[AdaptedProduct],
    x: torch.Tensor,
    gradients: Sequence[torch.Tensor],
    inners: Sequence[torch.Tensor | None],
    sums: Sums,
) -> torch.Tensor:
    """The gradient of x (tokens, width) through products of it, and those of their adapters."""
    dx: torch.Tensor | None = None
    for product, gradient, inner in zip(products, gradients, inners, strict=True):
        low_rank, mask = product.low_rank_gradient(gradient), product.mask(x)
        if low_rank is not None and inner is not None:
            thin = product.thin_out(x, mask)
            sums.add(product, low_rank.t() @ thin, (gradient.t() @ inner).mul_(product.scale))
            del thin
        dx = product.input_gradient(gradient, low_rank, product.dense(x.dtype), dx, mask)
    assert dx is not None
    return dx


def rows_at_once(tensor: torch.Tensor) -> int:
    """In how large blocks this device works through the inner width."""
    return ROWS_AT_ONCE.get(tensor.device.type, TILE)


def _gate_and_up(outs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Two tensors as they are, or the halves of one."""
    if len(outs) == 2:
        return outs[0], outs[1]
    gate, up = outs[0].chunk(2, dim=-1)
    return gate, up


def _rows(count: int, step: int) -> list[slice]:
    return [slice(start, start + step) for start in range(0, count, step)]
