"""Small models of every family that is written as GGUF, with random weights, a tokenizer and an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from qlora_studio.core.jobs import GgufType, MergeInto
from qlora_studio.engine.gguf_file.write import About, GgufFile, Precision
from qlora_studio.engine.merge import MergedWeights, MergeRecipe
from qlora_studio.engine.tokenizer import load_tokenizer
from tests.engine.gguf_file.small_tokenizers import save

VOCAB = 640
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2,
    "initializer_range": 0.1, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16}
LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
    "short_factor": [1 + 0.01 * i for i in range(12)], "long_factor": [1 + 0.1 * i for i in range(12)],
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama 3.1": ("llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama with biases": ("llama", {"attention_bias": True}),
    "llama with linear positions": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 48}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 48, "tie_word_embeddings": True}),
    "gemma2": ("gemma2", GEMMA | {"tie_word_embeddings": True}),
    "gemma3": ("gemma3_text", GEMMA | {"tie_word_embeddings": True}),
    "phi3": ("phi3", {"sliding_window": 300, "original_max_position_embeddings": 256}),
    "phi4-mini": ("phi3", {"sliding_window": 300, "original_max_position_embeddings": 512, "max_position_embeddings": 2048, "rope_parameters": LONG, "tie_word_embeddings": True}),
    "smollm3": ("smollm3", {}),
    "olmo2": ("olmo2", {}),
    "granite": ("granite", {"attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 4.0}),
}  # fmt: skip


LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def small_base(model_type: str, folder: Path, tokenizer: str = "gpt-2", **changes: Any) -> Path:
    """A base in transformers format."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **(SIZES | changes))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    save(tokenizer, folder)
    return folder


def small_adapter(base: Path, folder: Path, **changes: Any) -> Path:
    """An adapter on every linear layer, every number random."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tuned = get_peft_model(model, LoraConfig(**(LORA | changes)))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    tuned.save_pretrained(folder)
    return folder


def write_gguf(
    base: Path, place: Path, kind: GgufType, about: About, into: MergeInto = "original", adapter: Path | None = None
) -> Path:
    """The file for base and adapter."""
    adapter = adapter or small_adapter(base, place / "adapter")
    merged = MergedWeights(MergeRecipe(base, adapter, into, torch.float32))
    path = place / f"small.{kind}.gguf"
    GgufFile(merged, load_tokenizer(base), Precision(kind), about).write(path)
    merged.close()
    return path


def reference(base: Path, adapter: Path) -> Any:
    """PEFT's model of the two, in fp32."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    return PeftModel.from_pretrained(model, adapter).eval()
