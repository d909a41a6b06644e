"""Gradient checkpointing on any number of decoder layers, not only all or none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from qlora_studio.core.plan import MIB

PINNED_BLOCK_BYTES = 4 * MIB
"""A power of two: torch rounds every pinned block up to one, so that a tensor in one block can take twice its size."""


def decoder_layers(model: nn.Module) -> list[Any]:
    """The decoder layers in order: the longest list of checkpointable layers in the part that writes text."""
    text: Any = model
    decoder = text.get_decoder() if hasattr(text, "get_decoder") else text
    lists: list[list[Any]] = [
        list(module)
        for module in decoder.modules()
        if isinstance(module, nn.ModuleList) and len(module) and isinstance(module[0], GradientCheckpointingLayer)
    ]
    return max(lists, key=len, default=[])


def checkpoint_layers(model: nn.Module, count: int, *, offload: bool = False, pin: bool = False) -> None:
    """Gradient checkpointing on the first `count` layers: only their input is kept, the rest is recomputed backward.

    The first layers are chosen because they are the last to be freed: what the later ones save is gone by then. With
    `offload` these inputs wait in the computer's memory, with `pin` in pinned pages of it.
    """
    here = partial(checkpoint, use_reentrant=False, preserve_rng_state=draws_numbers(model))
    function = partial(checkpoint_offloaded, pin, here) if offload else here
    for index, layer in enumerate(decoder_layers(model)):
        layer.gradient_checkpointing = index < count
        layer._gradient_checkpointing_func = function


def draws_numbers(model: nn.Module) -> bool:
    """Whether a forward pass draws from torch's random stream, whose state then has to be kept for the second one.

    Keeping it costs a card 0.15 ms a layer, so it is kept only with dropout, the adapter's or the model's own.
    """
    configs = {
        id(one): one for one in (getattr(module, "config", None) for module in model.modules()) if one is not None
    }
    shares = [value for config in configs.values() for name, value in vars(config).items() if "drop" in name]
    own = any(isinstance(share, float) and share > 0 for share in shares)
    return own or any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())


def checkpoint_offloaded(pin: bool, here: Callable[..., Any], function: Callable[..., Any], *arguments: Any) -> Any:
    """A checkpoint whose saved inputs are copied to the computer's memory and back; on a CPU they are only copied."""
    with saved_tensors_hooks(partial(copy_to_host, pin=pin), copy_back):
        return here(function, *arguments)


@dataclass(frozen=True, slots=True)
class OnHost:
    """A tensor in the computer's memory, in pieces of at most PINNED_BLOCK_BYTES, and where it came from."""

    pieces: tuple[torch.Tensor, ...]
    shape: torch.Size
    device: torch.device


def copy_to_host(tensor: torch.Tensor, *, pin: bool) -> OnHost:
    """A copy in pieces, on its way when this returns; less than half a block is lost to rounding with `pin`.

    Pieces, because torch cannot hand out pinned memory of other sizes: with `pinned_max_round_threshold_mb` torch 2.13
    reuses a cached block for a larger request of the same power of two (ATen/core/CachingHostAllocator.h).
    """
    flat = tensor.detach().reshape(-1)
    pieces = flat.split(PINNED_BLOCK_BYTES // tensor.element_size())
    copies = [torch.empty(piece.shape, dtype=piece.dtype, device="cpu", pin_memory=pin) for piece in pieces]
    for copy, piece in zip(copies, pieces, strict=True):
        copy.copy_(piece, non_blocking=pin)
    return OnHost(tuple(copies), tensor.shape, tensor.device)


def copy_back(held: OnHost) -> torch.Tensor:
    """The tensor, on its device again. Work on the device waits for it; the host does not where it is pinned."""
    whole = torch.empty(held.shape, dtype=held.pieces[0].dtype, device=held.device)
    flat, start = whole.view(-1), 0
    for piece in held.pieces:
        flat[start : start + piece.numel()].copy_(piece, non_blocking=True)
        start += piece.numel()
    return whole
