"""Inputs of checkpointed layers wait in the computer's memory: on their way there while the layer computes, and back while the one behind it goes backward.

Copies run on a stream of their own. What keeps that right: the input stays on the card until its copy is done, because the
layer's call returns only behind it; the way back begins where the MLP of the layer behind is done with its large tensors,
so that it takes no memory at the worst moment, and whoever asks for the tensor waits for it. And it is checked: each tensor
is summed bit by bit as it leaves and as it comes back, and a step in which one differs has no loss that could be applied.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from qlora_studio.core.plan import MIB
from qlora_studio.engine.accelerator.protocol import Accelerator, Wait

PINNED_BLOCK_BYTES = 4 * MIB
"""A power of two: torch rounds every pinned block up to one, so that a tensor in one block can take twice its size."""
SUMMED = torch.int64
"""What a tensor's bits are summed as: a narrower kind would be copied to this one first."""


@dataclass(slots=True, weakref_slot=True)
class OnHost:
    """A tensor in the computer's memory, in pieces of at most PINNED_BLOCK_BYTES."""

    pieces: tuple[torch.Tensor, ...]
    shape: torch.Size
    device: torch.device
    """Where it came from."""
    bits: torch.Tensor
    """The sum of its bits, there."""
    before: weakref.ref[OnHost] | None = None
    """What was sent before it, which the backward pass asks for next."""
    coming: tuple[torch.Tensor, Wait] | None = None
    """The tensor on its way back, and what makes later work wait for it."""


class Offloading:
    """The tensors of one model that are offloaded and fetched again."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.newest: weakref.ref[OnHost] | None = None
        self.changed: torch.Tensor | None = None
        """Whether any tensor came back another since `take_changed`; on its device."""
        self.watched: list[Any] = []

    def watch(self, layers: list[Any]) -> None:
        """From now on the gradient of a layer's attention starts the way back of the input before it."""
        for handle in self.watched:
            handle.remove()
        attentions = [
            part for layer in layers for part in layer.children() if type(part).__name__.endswith("Attention")
        ]
        self.watched = [attention.register_forward_hook(self._fetch_behind) for attention in attentions]

    def checkpoint(self, here: Callable[..., Any], function: Callable[..., Any], *arguments: Any) -> Any:
        """What the checkpoint `here` makes of the function, with the tensors that it saves offloaded."""
        on_the_way: list[tuple[torch.Tensor, Wait]] = []

        def send(tensor: torch.Tensor) -> OnHost:
            held, flat, wait = self._send(tensor)
            on_the_way.append((flat, wait))
            return held

        try:
            with saved_tensors_hooks(send, self._take):
                out = here(function, *arguments)
            for _, wait in on_the_way:
                wait()
        finally:
            on_the_way.clear()  # autograd keeps `send` until the backward pass, and with it this list
        return out

    def take_changed(self) -> torch.Tensor | None:
        """Whether any tensor came back another since this was last asked; a scalar on its device, None where none came."""
        changed, self.changed = self.changed, None
        return changed

    def _send(self, tensor: torch.Tensor) -> tuple[OnHost, torch.Tensor, Wait]:
        """A copy in pieces, on its way when this returns; less than half a block is lost to rounding where it is pinned.

        Pieces, because torch cannot hand out pinned memory of other sizes: with `pinned_max_round_threshold_mb` torch 2.13
        reuses a cached block for a larger request of the same power of two (ATen/core/CachingHostAllocator.h).
        """
        pin = self.accelerator.pins_memory
        flat = tensor.detach().reshape(-1)
        pieces = flat.split(PINNED_BLOCK_BYTES // tensor.element_size())
        copies = [torch.empty(piece.shape, dtype=piece.dtype, device="cpu", pin_memory=pin) for piece in pieces]

        def copy() -> None:
            for target, piece in zip(copies, pieces, strict=True):
                target.copy_(piece, non_blocking=pin)

        wait = self.accelerator.run_beside(copy)
        held = OnHost(tuple(copies), tensor.shape, tensor.device, sum_bits(flat), self.newest)
        self.newest = weakref.ref(held)
        return held, flat, wait

    def _fetch(self, held: OnHost) -> tuple[torch.Tensor, Wait]:
        """The tensor on its device, where it is whole for work behind the wait; the host does not wait where it is pinned."""
        whole = torch.empty(held.shape, dtype=held.pieces[0].dtype, device=held.device)

        def copy() -> None:
            flat, start = whole.view(-1), 0
            for piece in held.pieces:
                flat[start : start + piece.numel()].copy_(piece, non_blocking=True)
                start += piece.numel()

        return whole, self.accelerator.run_beside(copy)

    def _take(self, held: OnHost) -> torch.Tensor:
        whole, wait = held.coming or self._fetch(held)
        held.coming = None
        wait()
        differs = sum_bits(whole.view(-1)) != held.bits
        self.changed = differs if self.changed is None else self.changed | differs
        return whole

    def _fetch_behind(self, attention: nn.Module, arguments: Any, output: Any) -> None:
        """A hook of a layer's attention: where the gradient comes to it, what was sent before the layer's input is fetched."""
        first = output[0] if isinstance(output, tuple) else output
        held = None if self.newest is None else self.newest()
        if held is not None and held.before is not None and first.requires_grad:
            first.register_hook(partial(self._fetch_early, held.before))

    def _fetch_early(self, before: weakref.ref[OnHost], gradient: torch.Tensor) -> None:
        held = before()
        if held is not None and held.coming is None:
            held.coming = self._fetch(held)


def sum_bits(flat: torch.Tensor) -> torch.Tensor:
    """The bits of a contiguous tensor (numbers,), as a sum of whole numbers that may overflow; a scalar on its device."""
    each = SUMMED.itemsize // flat.element_size()
    whole = len(flat) // each * each
    if flat.storage_offset() % each:
        flat = flat.clone()
    rest = flat[whole:].view(torch.uint8).sum(dtype=SUMMED)
    return flat[:whole].view(SUMMED).sum() + rest
