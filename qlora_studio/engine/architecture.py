"""What an architecture is made of once it is loaded: what is quantised, what gets an adapter, what stays as it is.

The rules are those of transformers' own 4-bit loader and of `engine.load`; a test compares them with real models of many
families, to the byte. The model that is looked at is whole and has no numbers.
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from qlora_studio.core.config import LoraSettings
from qlora_studio.core.errors import StudioError
from qlora_studio.core.plan import LinearShape, StackedShape
from qlora_studio.engine.adapters import linear_names
from qlora_studio.engine.load import attach_adapter, choose_attention
from qlora_studio.engine.stand_ins import build, features_of, shorten, without_numbers

PER_TOKEN = ("num_experts_per_tok", "moe_topk", "top_k_experts")
"""What the number of experts a token goes through is called."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What a model is made of."""

    linears: tuple[LinearShape, ...]
    other_bytes: int
    stacked: tuple[StackedShape, ...]


def count_model(config: PreTrainedConfig) -> Counted:
    """The linear layers by kind, experts, and the bytes in bf16 of everything that is not quantised."""
    with without_numbers():
        return _count(config)


def _count(config: PreTrainedConfig) -> Counted:
    """The same where numbers are already left out. What is quantised is decided by the rules of transformers' own loader."""
    model = build(config, torch.bfloat16)
    adapted, quantised = adapted_layers(model), quantised_names(model)
    kinds: Counter[LinearShape] = Counter()
    other = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    for name, module in adapted.items():
        inputs, outputs = features_of(module)
        four_bit = name in quantised
        kinds[
            LinearShape(
                name=name.rpartition(".")[2],
                inputs=inputs,
                outputs=outputs,
                count=0,
                bias=module.bias is not None,
                four_bit=four_bit,
                transposed=isinstance(module, Conv1D),
                path=pattern_of(name),
            )
        ] += 1
        if four_bit:
            other.pop(id(module.weight))
    return Counted(
        linears=tuple(replace(kind, count=count) for kind, count in kinds.items()),
        other_bytes=sum(tensor.untyped_storage().nbytes() for tensor in other.values()),
        stacked=_count_experts(model, config),
    )


def _count_experts(model: PreTrainedModel, config: PreTrainedConfig) -> tuple[StackedShape, ...]:
    """Parameters that hold the matrices of many experts."""
    text = config.get_text_config()
    chosen = next((getattr(text, name) for name in PER_TOKEN if getattr(text, name, None)), None)
    kinds: Counter[StackedShape] = Counter()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 3 and "expert" in name:
            active = min(1.0, chosen / parameter.shape[0]) if chosen else 1.0
            kinds[StackedShape(pattern_of(name), parameter.numel(), 0, active)] += 1
    return tuple(replace(kind, count=count) for kind, count in kinds.items())


def pattern_of(name: str) -> str:
    """A module's name with `*` for every number in it."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def quantised_names(model: PreTrainedModel) -> set[str]:
    """Full names of the modules that transformers replaces by 4-bit ones: exactly `nn.Linear`, and GPT-2's Conv1D."""
    skipped = [*get_keys_to_not_convert(model), *(model._keep_in_fp32_modules or ())]
    return {
        name
        for name, module in model.named_modules()
        if (type(module) is nn.Linear or isinstance(module, Conv1D)) and should_convert_module(name, skipped)
    }


def adapted_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The layers that carry an adapter once the model is loaded: every linear one but the output head."""
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }


def check_adapter(config: PreTrainedConfig) -> None:
    """Attaches an adapter to a small copy as the engine does, and compares where it went with where it should."""
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        short = shorten(config, 4)
        model = AutoModelForCausalLM.from_config(short, attn_implementation=choose_attention(short))
        wanted = set(linear_names(model))
        if not wanted or any(isinstance(module, Conv1D) for module in model.modules()):
            return  # Conv1D becomes a linear layer only when it is quantised
        adapter = attach_adapter(model, LoraSettings(rank=1), torch.float32, seed=0)
    reached = {
        name.removeprefix("base_model.model.").partition(".lora_A.")[0]
        for name, _ in adapter.named_parameters()
        if ".lora_A." in name
    }
    if reached != wanted:
        odd = sorted(wanted ^ reached)
        raise StudioError(
            f"An adapter would not reach a {config.model_type} model's layers as it should: {pattern_of(odd[0])}"
            f"{f' and {len(odd) - 1} more' if len(odd) > 1 else ''}.",
            "Choose another model: its dense layers share names with its experts, which peft adapts in their place.",
            field="model_type",
        )
