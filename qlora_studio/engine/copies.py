"""Models with random weights of a given shape: what dry runs, tests and benchmarks measure instead of the real thing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from qlora_studio.core.plan import ModelShape


def config_for(shape: ModelShape) -> PreTrainedConfig:
    """The transformers config of a shape whose family the planner knows by formula."""
    values: dict[str, Any] = {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "intermediate_size": shape.intermediate,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "tie_word_embeddings": shape.tied_embeddings,
        "max_position_embeddings": shape.max_positions,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if shape.family in ("llama", "qwen3"):
        values["attention_bias"] = shape.attention_bias
    if shape.family == "llama":
        values["mlp_bias"] = shape.mlp_bias
    if shape.family == "mistral" or shape.sliding_window is not None:
        values["sliding_window"] = shape.sliding_window
    if shape.rotary_dim is not None:
        values["partial_rotary_factor"] = shape.rotary_dim / shape.head_dim
    if shape.family == "gemma3_text":
        local = [index < shape.sliding_layers for index in range(shape.layers)]
        values["layer_types"] = ["sliding_attention" if here else "full_attention" for here in local]
    config = AutoConfig.for_model(shape.family, **values)
    assert isinstance(config, PreTrainedConfig)
    return config


def write_random_model(shape: ModelShape, folder: Path, seed: int = 0) -> Path:
    """Writes a model of this shape with random bf16 weights in transformers format; returns its folder."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config_for(shape), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return folder
