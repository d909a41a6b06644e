"""Which decoder layers are computed twice. Any number of them, not only all or none."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


def decoder_layers(model: nn.Module) -> list[Any]:
    """The decoder layers in order: the longest module list of checkpointable layers."""
    lists: list[list[Any]] = [
        list(module)
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(module) and isinstance(module[0], GradientCheckpointingLayer)
    ]
    return max(lists, key=len, default=[])


def checkpoint_layers(model: nn.Module, count: int) -> None:
    """Keeps only the input of the first `count` layers and computes the rest of them again in the backward pass.

    The first layers are chosen because they are the last to be freed: what the later ones save is gone by then.
    """
    for index, layer in enumerate(decoder_layers(model)):
        layer.gradient_checkpointing = index < count
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False, preserve_rng_state=True)
