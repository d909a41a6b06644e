"""Gradient checkpointing on any number of decoder layers, not only all or none."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


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
    function = partial(checkpoint_offloaded, pin) if offload else checkpoint_here
    for index, layer in enumerate(decoder_layers(model)):
        layer.gradient_checkpointing = index < count
        layer._gradient_checkpointing_func = function


checkpoint_here = partial(checkpoint, use_reentrant=False, preserve_rng_state=True)


def checkpoint_offloaded(pin: bool, function: Callable[..., Any], *arguments: Any) -> Any:
    """A checkpoint whose saved inputs are copied to the computer's memory and back; on a CPU they are only copied."""
    with save_on_cpu(pin_memory=pin):
        return checkpoint_here(function, *arguments)
