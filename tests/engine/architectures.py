"""Tiny models with random weights of many families: what the plan says of each is held against what is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

SIZES: dict[str, Any] = {
    "vocab_size": 512, "max_position_embeddings": 1024, "hidden_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 256,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
GPT = {"n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": 1024}
DENSE: dict[str, dict[str, Any]] = {
    "llama": {}, "mistral": {}, "qwen2": {}, "qwen3": {"head_dim": 32}, "phi3": {}, "gemma": {"head_dim": 32},
    "gemma2": {"head_dim": 32, "sliding_window": 64}, "gemma3_text": {"head_dim": 32, "sliding_window": 64},
    "granite": {}, "olmo": {}, "olmo2": {}, "smollm3": {}, "glm4": {}, "stablelm": {}, "starcoder2": {},
    "gpt_neox": {}, "gptj": GPT | {"rotary_dim": 16}, "opt": {"ffn_dim": 256, "word_embed_proj_dim": 128},
    "bloom": {"n_layer": 4, "n_head": 4}, "phi": {}, "cohere2": {}, "exaone4": {}, "nemotron": {}, "seed_oss": {},
    "mpt": {"d_model": 128, "n_layers": 4, "n_heads": 4}, "arcee": {}, "doge": {},
    "gemma4_text": {
        "head_dim": 32, "global_head_dim": 64, "num_global_key_value_heads": 1, "attention_k_eq_v": True, "sliding_window": 64,
        "hidden_size_per_layer_input": 32, "vocab_size_per_layer_input": 512, "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, "block_ff_dim": 256, "block_auto_adjust_ff_dim": False},
}  # fmt: skip
"""Families that are quantised, adapted and mergeable throughout."""
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": EXPERTS, "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 64}, "qwen3_moe": EXPERTS,
    "gpt_oss": EXPERTS | {"head_dim": 32, "sliding_window": 64}, "olmoe": EXPERTS, "granitemoe": EXPERTS,
}  # fmt: skip
"""Families whose experts stay in 16 bit and untrained."""
ODD: dict[str, dict[str, Any]] = {"falcon": {}, "gpt2": GPT}
"""Falcon has linear layers of a kind of its own, GPT-2 transposed ones."""
ALL = DENSE | MIXTURES | ODD
NO_DROPOUT = dict.fromkeys(
    (
        "attention_dropout", "residual_dropout", "dropout", "activation_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop",
    ),
    0.0,
)  # fmt: skip
MORE: dict[str, dict[str, Any]] = dict.fromkeys(
    [
        "apertus", "bitnet", "cohere", "cohere2_moe", "cwm", "diffllama", "ernie4_5", "flex_olmo", "glm", "gpt_bigcode",
        "granite_swa", "granitemoe_swa", "granitemoeshared", "hyperclovax", "iquestcoder", "jais2", "mellum", "ministral3",
        "nanochat", "olmo3", "olmo_hybrid", "persimmon", "qwen3_5_text", "vaultgemma", "xglm",
    ],
    NO_DROPOUT,
) | {"flint": EXPERTS | {"head_dim": 32}, "minimax_m2": EXPERTS | {"head_dim": 32}}  # fmt: skip
"""Families that transformers has and the plan no formulas for, tried for what they compute."""


def config_of(family: str) -> PreTrainedConfig:
    config = AutoConfig.for_model(family, **(SIZES | (ALL | MORE)[family]))
    assert isinstance(config, PreTrainedConfig)
    return config


def write_model(family: str, folder: Path, **changes: Any) -> Path:
    """A model of this family, its config changed so, in transformers format; returns its folder."""
    torch.manual_seed(0)
    config = config_of(family)
    config.update(changes)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder
