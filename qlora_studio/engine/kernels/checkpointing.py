"""Gradient checkpointing on any number of decoder layers, not only all or none."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from qlora_studio.engine.kernels.offloading import Offloading


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


def checkpoint_layers(model: nn.Module, count: int, offloading: Offloading | None = None) -> None:
    """Gradient checkpointing on the first `count` layers: only their input is kept, the rest is recomputed backward.

    The first layers are chosen because they are the last to be freed: what the later ones save is gone by then. With
    `offloading` these inputs wait in the computer's memory.
    """
    layers = decoder_layers(model)
    here = partial(checkpoint, use_reentrant=False, preserve_rng_state=draws_numbers(model))
    function = here if offloading is None else partial(offloading.checkpoint, here)
    for index, layer in enumerate(layers):
        layer.gradient_checkpointing = index < count
        layer._gradient_checkpointing_func = function
    if offloading is not None:
        offloading.watch(layers[:count])


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
