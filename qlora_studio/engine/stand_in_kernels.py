"""What stands in for the kernels in a dry run: they keep the same, and mark where the real ones work in blocks.

The real ones work in blocks whose size depends on the device, so what a block holds grows with the tokens up to a point
and not beyond. It is left out here and added by the planner: at a mark it is told what is held besides, and how wide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from qlora_studio.engine.kernels.documents import Documents
from qlora_studio.engine.kernels.gated_mlp import GatedParts, Kept, SideBySide, weights_of
from qlora_studio.engine.kernels.norm import Kernel, NormKind, as_rows, from_rows, memory_order
from qlora_studio.engine.kernels.replace import MlpKernel


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment at which a kernel works in blocks."""

    held: int
    """Bytes there besides the blocks."""
    norm_numbers: int = 0
    """Numbers of the tensor that is normed."""
    norm_fused: bool = False
    inner_numbers: int = 0
    """Numbers of an inner tensor of a gated MLP."""
    tile_numbers: int = 0
    """Likewise, where a tile of it is there."""
    attention: bool = False


@dataclass
class Marks:
    """The marks of one backward pass, in order. `held` says how many bytes there are now."""

    held: Callable[[], int] = lambda: 0
    made: list[Mark] = field(default_factory=list)

    def norm(self, rows: torch.Tensor, kind: NormKind) -> None:
        self.made.append(Mark(self.held(), norm_numbers=rows.numel(), norm_fused=kind.offset == 0))

    def mlp(self, numbers: int, *, tiled: bool = False, blocks: bool = True) -> None:
        """`numbers` are those of an inner tensor, (tokens, inner); with `tiled` of one that is never there as a whole."""
        self.made.append(
            Mark(self.held(), inner_numbers=numbers if blocks else 0, tile_numbers=numbers if tiled else 0)
        )

    def attention(self, more: int = 0) -> None:
        self.made.append(Mark(self.held() + more, attention=True))

    def take(self) -> tuple[Mark, ...]:
        """Those since the last time."""
        made, self.made = tuple(self.made), []
        return made


def norm_kernel(marks: Marks) -> Kernel:
    """A norm that keeps its input and one number a row."""
    apply: Callable[..., torch.Tensor] = PlannedNorm.apply
    return lambda x, weight, eps, kind: apply(x, weight, kind, marks)


def mlp_kernel(marks: Marks) -> MlpKernel:
    """A gated MLP that keeps gate and up, or in tiles its input alone."""

    def kernel(x: torch.Tensor, parts: GatedParts, *, tiled: bool) -> torch.Tensor:
        first: Callable[..., tuple[torch.Tensor, ...]] = SideBySide.apply
        keep: Callable[..., tuple[torch.Tensor, ...]] = Kept.apply
        if tiled:
            in_tiles: Callable[..., torch.Tensor] = PlannedTiles.apply
            (rows,) = keep(x.reshape(-1, x.shape[-1]))
            return in_tiles(rows, parts, marks, rows.grad_fn, *weights_of(parts.products)).view(x.shape)
        down: Callable[..., torch.Tensor] = PlannedDown.apply
        kept = keep(*first(x.reshape(-1, x.shape[-1]), parts.first, *weights_of(parts.first)))
        return down(parts, marks, kept[0].grad_fn, *weights_of((parts.down,)), *kept).view(x.shape)

    return kernel


class PlannedNorm(torch.autograd.Function):
    """`RmsNorm` without its blocks."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, kind: NormKind, marks: Marks) -> torch.Tensor:
        ctx.order, ctx.kind, ctx.marks = memory_order(x), kind, marks
        rows = as_rows(x, ctx.order)
        ctx.save_for_backward(x, rows.new_empty(len(rows), 1, dtype=torch.float32), weight)
        return from_rows(torch.empty_like(rows), x, ctx.order)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        x, _, _ = ctx.saved_tensors
        rows, gradient = as_rows(x, ctx.order), as_rows(grads[0], ctx.order)
        dx = torch.empty_like(rows)
        ctx.marks.norm(gradient, ctx.kind)
        return from_rows(dx, x, ctx.order), None, None, None


class PlannedDown(torch.autograd.Function):
    """`GatedDown` without its blocks; `kept` is the node that keeps gate and up."""

    @staticmethod
    def forward(
        ctx: Any,
        parts: GatedParts,
        marks: Marks,
        kept: Any,
        a: torch.Tensor | None,
        b: torch.Tensor | None,
        *outs: torch.Tensor,
    ) -> torch.Tensor:
        ctx.parts, ctx.marks, ctx.kept = parts, marks, kept
        ctx.low_rank = a, b
        return outs[0].new_empty(len(outs[0]), len(parts.down.dense(outs[0].dtype)))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        outs = ctx.kept.saved_tensors  # a checkpoint computes them again here, before the weight is there
        weight = ctx.parts.down.dense(grads[0].dtype)  # (width, inner)
        ctx.marks.mlp(len(grads[0]) * weight.shape[1])
        sums = (None if one is None else torch.empty_like(one) for one in ctx.low_rank)
        return (None, None, None, *sums, *outs)


class PlannedTiles(torch.autograd.Function):
    """`TiledMlp` without its tiles and their blocks; `kept` is the node that keeps x, or None where x needs no gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, parts: GatedParts, marks: Marks, kept: Any, *low_rank: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.parts, ctx.marks, ctx.kept, ctx.low_rank = parts, marks, kept, low_rank
        if kept is None:  # in the first layer, of an MLP that stands beside attention and not behind it
            ctx.save_for_backward(x)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        (x,) = ctx.saved_tensors if ctx.kept is None else ctx.kept.saved_tensors  # a checkpoint computes it again here
        dx = torch.empty_like(x)
        numbers = _inner_numbers(ctx.parts, x)
        for product in (ctx.parts.down, *ctx.parts.first):
            weight = product.dense(x.dtype)
            ctx.marks.mlp(numbers, tiled=True, blocks=product is ctx.parts.down)
            del weight
        sums = (None if one is None else torch.empty_like(one) for one in ctx.low_rank)
        return (dx, None, None, None, *sums)


def _inner_numbers(parts: GatedParts, x: torch.Tensor) -> int:
    """Numbers of one inner tensor, (tokens, inner)."""
    return len(x) * int(parts.down.dense(x.dtype).shape[1])


def attention_kernel(marks: Marks) -> Callable[..., tuple[torch.Tensor, None]]:
    """torch's fused attention, packed where `documents` are given; masks of windows are left out, the planner adds them."""

    def attend(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        documents: Documents | None = None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        if documents is None:
            out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
            marked: Callable[..., torch.Tensor] = MarkedAttention.apply
            return marked(out, marks, sum(part.nbytes for part in (query, key, value))), None
        if attention_mask is not None:
            raise ValueError("its layers make masks of their own")
        if query.shape[1] % key.shape[1]:
            raise ValueError(f"{query.shape[1]} heads of queries cannot share {key.shape[1]} of keys")
        documents.windows.append(sliding_window)
        packed: Callable[..., torch.Tensor] = PlannedAttention.apply
        return packed(query, key, value, marks).transpose(1, 2), None

    return attend


class MarkedAttention(torch.autograd.Function):
    """Passes attention's output on; backward it marks that the gradients of its inputs, so many bytes, are made next."""

    @staticmethod
    def forward(ctx: Any, out: torch.Tensor, marks: Marks, gradients: int) -> torch.Tensor:
        ctx.marks, ctx.gradients = marks, gradients
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        ctx.marks.attention(ctx.gradients)
        return grads[0], None, None


class PlannedAttention(torch.autograd.Function):
    """Packed attention of query (1, heads, tokens, head_dim) without its blocks, masks and the pieces of rows."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, marks: Marks) -> torch.Tensor:
        heads, tokens = query.shape[1:3]
        out = query.new_empty(1, tokens, heads, value.shape[-1]).transpose(1, 2)
        ctx.save_for_backward(query, key, value, out, query.new_empty(1, heads, tokens, dtype=torch.float32))
        ctx.marks = marks
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, _, _ = ctx.saved_tensors
        found = [torch.empty_like(part) for part in (query, key, value)]
        ctx.marks.attention()
        return (*found, None)
