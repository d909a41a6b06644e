"""Adapters of every kind that PEFT makes, on small bases of several layouts: what a merge is held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests.engine.architectures import SIZES, config_of

SMALL = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def small(kind: str = "llama", **changes: Any) -> Any:
    """The model of a small config, in fp32, with weights large enough that logits differ."""
    if kind in ("gpt2", "mixtral", "phi3", "opt", "gptj"):
        config = config_of(kind)
        config.update(changes)
    else:
        config = AutoConfig.for_model(kind, **(SMALL | {"initializer_range": 0.2} | changes))
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def renamed(folder: Path, rename: Callable[[str], str]) -> None:
    """Gives the tensors of a saved base other names."""
    file = folder / "model.safetensors"
    save_file({rename(name): value for name, value in load_file(file).items()}, file, metadata={"format": "pt"})


@dataclass(frozen=True)
class Variant:
    """A base and what PEFT is asked to do with it."""

    lora: dict[str, Any] = field(default_factory=dict)
    base: str = "llama"
    changes: dict[str, Any] = field(default_factory=dict)
    shards: str = "1GB"
    grow: int = 0
    """Rows to which the embeddings are resized before the adapter is made."""
    rename: Callable[[str], str] | None = None
    """What is done to the names in the base's files after the adapter is saved."""

    def write(self, place: Path) -> tuple[Path, Path]:
        """Base and adapter on the disk, every number of the adapter random."""
        base, adapter = place / "base", place / "adapter"
        model = small(self.base, **self.changes)
        model.save_pretrained(base, max_shard_size=self.shards)
        if self.grow:
            model.resize_token_embeddings(self.grow)
        settings = {"r": 4, "lora_alpha": 8, "target_modules": LINEAR, "task_type": "CAUSAL_LM"} | self.lora
        tuned = get_peft_model(model, LoraConfig(**settings))
        torch.manual_seed(1)
        with torch.no_grad():
            for name, parameter in tuned.named_parameters():
                if parameter.requires_grad:
                    if "magnitude" in name:
                        parameter.mul_(1 + 0.3 * torch.rand_like(parameter))
                    else:
                        parameter.add_(0.1 * torch.randn_like(parameter))
        tuned.save_pretrained(adapter, save_embedding_layers=bool(self.grow) or "auto")
        if self.rename is not None:
            renamed(base, self.rename)
        return base, adapter

    def reference(self, base: Path, adapter: Path) -> Any:
        """PEFT's own model of the two, not merged: what was trained, also where its merge would write into tied weights."""
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        if self.grow:
            model.resize_token_embeddings(self.grow)
        return PeftModel.from_pretrained(model, adapter).eval()


UNTIED, TIED = {"tie_word_embeddings": False}, {"tie_word_embeddings": True}
GPT2 = ["c_attn", "c_proj", "c_fc"]
MERGEABLE: dict[str, Variant] = {
    "plain": Variant(),
    "many shards": Variant(shards="20KB"),
    "half of the layers": Variant({"target_modules": ["q_proj", "v_proj"]}),
    "one layer": Variant({"layers_to_transform": [1]}),
    "rslora": Variant({"use_rslora": True}),
    "rank and alpha patterns": Variant(
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 7}, "alpha_pattern": {"k_proj": 3, "^model.layers.0.mlp.down_proj": 5}}
    ),
    "rslora with patterns": Variant({"use_rslora": True, "rank_pattern": {"v_proj": 9}, "alpha_pattern": {"o_proj": 1}}),
    "dora": Variant({"use_dora": True}),
    "dora with rslora and patterns": Variant({"use_dora": True, "use_rslora": True, "rank_pattern": {"q_proj": 2}}),
    "biases trained": Variant({"bias": "all"}, changes={"attention_bias": True}),
    "lora bias": Variant({"lora_bias": True, "target_modules": ["q_proj"]}, changes={"attention_bias": True}),
    "saved head, untied": Variant({"modules_to_save": ["lm_head"]}, changes=UNTIED),
    "saved head, tied": Variant({"modules_to_save": ["lm_head"]}, changes=TIED),
    "saved embeddings, untied": Variant({"modules_to_save": ["embed_tokens"]}, changes=UNTIED),
    "saved embeddings, tied": Variant({"modules_to_save": ["embed_tokens"]}, changes=TIED),
    "both saved, untied": Variant({"modules_to_save": ["embed_tokens", "lm_head"]}, changes=UNTIED),
    "both saved, tied": Variant({"modules_to_save": ["embed_tokens", "lm_head"]}, changes=TIED),
    "tying ensured": Variant({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, changes=TIED),
    "lora on embeddings, untied": Variant({"target_modules": [*LINEAR, "embed_tokens"]}, changes=UNTIED),
    "lora on embeddings, tied": Variant({"target_modules": [*LINEAR, "embed_tokens"]}, changes=TIED),
    "lora on the head": Variant({"target_modules": [*LINEAR, "lm_head"]}, changes=UNTIED),
    "lora on a tied head": Variant({"target_modules": [*LINEAR, "lm_head"]}, changes=TIED),
    "single tokens, untied": Variant({"trainable_token_indices": [3, 90]}, changes=UNTIED),
    "single tokens, tied": Variant({"trainable_token_indices": [3, 90]}, changes=TIED),
    "grown vocabulary": Variant(grow=100, changes=UNTIED),
    "grown and saved": Variant({"modules_to_save": ["embed_tokens", "lm_head"]}, grow=100, changes=UNTIED),
    "saved norms": Variant({"modules_to_save": ["input_layernorm"]}),
    "transposed layers": Variant({"target_modules": GPT2, "fan_in_fan_out": True}, base="gpt2"),
    "dora on transposed layers": Variant({"target_modules": GPT2, "fan_in_fan_out": True, "use_dora": True}, base="gpt2"),
    "base without prefix": Variant(rename=lambda name: name.removeprefix("model."), changes=UNTIED),
    "gpt-2 without prefix": Variant(
        {"target_modules": GPT2, "fan_in_fan_out": True}, base="gpt2", rename=lambda name: name.removeprefix("transformer.")
    ),
    "joined projections": Variant({"target_modules": ["qkv_proj", "gate_up_proj", "down_proj", "o_proj"]}, base="phi3"),
    "attention of a mixture": Variant({"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}, base="mixtral"),
}  # fmt: skip
REFUSED: dict[str, tuple[Variant, str]] = {
    "factors on experts": (
        Variant({"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj"]}, base="mixtral"),
        "target_parameters: mlp.experts.down_proj",
    ),
    "bias without a place": (Variant({"lora_bias": True}), "This adapter uses lora_bias"),
    "layers repeated": (Variant({"layer_replication": [[0, 2], [1, 2]]}), "This adapter uses layer_replication"),
    "activated": (Variant({"alora_invocation_tokens": [1, 2]}), "This adapter uses alora_invocation_tokens"),
    "begun from the base's weights": (Variant({"init_lora_weights": "pissa"}), "init_lora_weights: pissa"),
}
assert SIZES
