"""Which layers an adapter goes on, what it starts as, and its tensors by the names that they have in PEFT's files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from qlora_studio.core.config import LoraSettings
from qlora_studio.core.errors import StudioError
from qlora_studio.engine.kernels.checkpointing import decoder_layers
from qlora_studio.engine.kernels.dora import weight_norm
from qlora_studio.engine.kernels.linear import dense_weight

ADAPTER = "default"
SVD_ROUNDS = 4
"""Power iterations of the randomised decomposition (Halko et al. 2011, arXiv 0909.4061): as many as PEFT's docs advise."""
SAME = {
    "r": "lora.rank",
    "lora_alpha": "lora.alpha",
    "use_rslora": "lora.use_rslora",
    "use_dora": "lora.use_dora",
}
"""What an adapter to start from must have in common with the settings, by PEFT's name and ours."""


def linear_names(model: PreTrainedModel) -> list[str]:
    """Full names of the linear layers that can carry an adapter: all but the output head."""
    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]


def peft_settings(model: PreTrainedModel, lora: LoraSettings) -> LoraConfig:
    """PEFT's account of the adapter that the settings ask for on this model."""
    every = sorted({name.rpartition(".")[2] for name in linear_names(model)})
    names = [name for name in every if name in lora.module_names] if lora.module_names else every
    layers = len(decoder_layers(model))
    return LoraConfig(
        r=lora.stored_rank,
        lora_alpha=stored_alpha(lora),  # type: ignore[arg-type]  # PEFT computes with any number
        lora_dropout=lora.dropout,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        target_modules=names,
        layers_to_transform=list(lora.layers_of(layers)) if lora.layers.strip() else None,
        bias="none",
        task_type="CAUSAL_LM",
    )


def stored_alpha(lora: LoraSettings) -> float:
    """The alpha that gives the adapter as it is stored the scale that rank and alpha say."""
    more = lora.stored_rank / lora.rank
    found = lora.alpha * (math.sqrt(more) if lora.use_rslora else more)
    return int(found) if found == int(found) else found


def prepare_start(model: PeftModel, lora: LoraSettings) -> None:
    """Makes a fresh adapter start as the settings say, whatever format its numbers are in."""
    for layer in adapted_layers(model):
        if lora.use_dora:
            state = getattr(layer.base_layer.weight, "quant_state", layer.base_layer.weight)
            layer.lora_magnitude_vector[ADAPTER].weight.data.copy_(weight_norm(layer, ADAPTER, state.dtype))
        if lora.init != "zero":
            start_from_base(layer, lora)


def keep_norms(model: nn.Module) -> None:
    """Computes what DoRA needs of the base's weights once, of a model in evaluation; later they may lie otherwise."""
    for layer in adapted_layers(model):
        for name in layer.lora_magnitude_vector if layer.lora_variant else ():
            state = getattr(layer.base_layer.weight, "quant_state", layer.base_layer.weight)
            weight_norm(layer, name, state.dtype)


def adapted_layers(model: nn.Module) -> list[Any]:
    """The layers with an adapter, in order."""
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


@torch.no_grad()
def start_from_base(layer: Any, lora: LoraSettings) -> None:
    """PiSSA and OLoRA: the adapter starts as a part of W, and the base is what remains.

    What remains would have to be quantised again, and the file would fit no other base. So W stays as it is, and the
    start stands a second time in the adapter, with B negative and without a gradient: `W + scale·(B·A - B₀·A₀)`. That is
    a plain adapter of twice the rank, which everything that reads PEFT's files can load.
    """
    a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight  # (2·rank, in), (out, 2·rank)
    weight, rank = dense_weight(layer.base_layer, torch.float32), lora.rank  # (out, in)
    if lora.init == "pissa":
        left, right = largest_directions(weight, rank, layer.scaling[ADAPTER])
    else:
        left, right = orthonormal_directions(weight, rank)
    found = len(right)  # a layer narrower than the rank has no more directions
    for half, sign in ((0, 1), (rank, -1)):
        a[half : half + found] = right
        b[:, half : half + found] = sign * left
    if found < rank:
        a[rank + found :] = 0
    a.register_post_accumulate_grad_hook(lambda one: _clear(one.grad[rank:]))
    b.register_post_accumulate_grad_hook(lambda one: _clear(one.grad[:, rank:]))


def largest_directions(weight: torch.Tensor, rank: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """B and A whose product times scale is W along its largest singular directions (PiSSA, Meng et al. 2024, 2404.02948)."""
    left, values, right = torch.svd_lowrank(weight, q=min(rank, *weight.shape), niter=SVD_ROUNDS)
    root = (values / scale).sqrt()
    return left * root, (right * root).t()


def orthonormal_directions(weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """B and A as the first columns of Q and the first rows of R of W = Q·R (OLoRA, Büyükakyüz 2024, 2406.01775).

    The first columns of Q come from those of W alone, and R's rows are their products with W: no whole decomposition.
    """
    left = torch.linalg.qr(weight[:, : min(rank, *weight.shape)]).Q  # (out, rank)
    return left, left.t() @ weight


def _clear(gradient: torch.Tensor) -> None:
    gradient.zero_()


def saved_tensors(model: PeftModel) -> dict[str, torch.Tensor]:
    """The adapter's own tensors by their names in a file; they share their storage with the model's."""
    tensors: dict[str, torch.Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return tensors


def file_name(parameter: str) -> str:
    """How a file calls a LoRA parameter of the model."""
    return parameter.replace(f".{ADAPTER}", "").replace("magnitude_vector.weight", "magnitude_vector")


def start_from(model: PeftModel, folder: Path) -> None:
    """Puts the weights of a saved adapter into a fresh one of the same shape, which training goes on from.

    Raises a StudioError for an adapter of another rank, scale, kind or base.
    """
    values: Mapping[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    fresh = model.peft_config[ADAPTER].to_dict()
    for name, field in SAME.items():
        if (values.get(name) or False) != fresh[name]:
            raise StudioError(
                f"The adapter to start from has {field} {values.get(name)}, and the settings say {fresh[name]}.",
                f"Set {field} to {values.get(name)}.",
                where=str(folder),
            )
    there, state = saved_tensors(model), load_file(folder / "adapter_model.safetensors")
    for name, tensor in state.items():
        parameter = there.pop(name, None)
        if parameter is None or parameter.shape != tensor.shape:
            raise StudioError(
                f"The adapter to start from was made for another base or other layers: {name} does not fit.",
                "Choose the base it was trained on, and its target modules and layers.",
                where=str(folder),
            )
        parameter.copy_(tensor)
    if there:
        raise StudioError(
            f"The adapter to start from holds no {min(there)}.",
            "Choose the base it was trained on, and its target modules and layers.",
            where=str(folder),
        )
