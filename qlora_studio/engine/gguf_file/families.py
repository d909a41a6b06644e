"""The architectures that are written as GGUF: what llama.cpp must be told of each, and how it lays out their weights.

Only what was compared with llama.cpp's own logits stands here. Everything in a configuration that would change the
arithmetic is either written down or refused: llama.cpp would silently compute something else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gguf
import torch

from qlora_studio.core.errors import StudioError

Write = Callable[[gguf.GGUFWriter, Any], None]
WAY_OUT = "Export the merged model instead; llama.cpp's convert_hf_to_gguf.py may know it."


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture."""

    arch: str
    """Its name in `gguf.MODEL_ARCH`."""
    interleaved: bool = False
    """Whether llama.cpp pairs neighbouring rows of queries and keys for the rotation, where transformers pairs halves."""
    raised_norms: bool = False
    """Whether norms multiply by one more than their weight."""
    activation: str = "silu"
    more: Write = lambda writer, config: None
    """What only this family has to say."""


def write_configuration(writer: gguf.GGUFWriter, config: Any, family: Family) -> None:
    """Everything llama.cpp is told of the architecture. Raises a StudioError for what it could not follow."""
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    _refuse_unless(activation == family.activation, f"the activation {activation}")
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    rope = full_rope(config)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope.get("rope_theta") or 10000.0)
    writer.add_rope_dimension_count(rope_dimensions(config))
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    _refuse_unless(kind in ("default", "linear", "llama3", "longrope"), f"positions scaled by {kind}")
    _refuse_unless(kind != "longrope" or family.arch == "PHI3", f"positions scaled by {kind}")
    family.more(writer, config)


def rope_tensors(config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Factors on the rotation's frequencies that llama.cpp reads as tensors, in fp32."""
    rope, dimensions = full_rope(config), rope_dimensions(config)
    if rope.get("rope_type") == "llama3":
        yield "rope_freqs.weight", llama3_factors(rope, dimensions)
    elif rope.get("rope_type") == "longrope":
        yield "rope_factors_long.weight", torch.tensor(rope["long_factor"], dtype=torch.float32)
        yield "rope_factors_short.weight", torch.tensor(rope["short_factor"], dtype=torch.float32)


def llama3_factors(rope: dict[str, Any], dimensions: int) -> torch.Tensor:
    """Llama 3.1's divisors of the frequencies (dimensions / 2), as transformers' `_compute_llama3_parameters`."""
    frequencies = 1.0 / rope["rope_theta"] ** (torch.arange(0, dimensions, 2, dtype=torch.float32) / dimensions)
    length, original = 2 * math.pi / frequencies, rope["original_max_position_embeddings"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    share = (original / length - low) / (high - low)
    between = 1 / ((1 - share) / factor + share)
    divisors = torch.where(length > original / low, torch.full_like(length, factor), between)
    return torch.where(length < original / high, torch.ones_like(length), divisors)


def full_rope(config: Any) -> dict[str, Any]:
    """The rotation of layers with full attention."""
    rope: dict[str, Any] = dict(getattr(config, "rope_parameters", None) or {})
    return dict(rope["full_attention"]) if "full_attention" in rope else rope


def rope_dimensions(config: Any) -> int:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    share = full_rope(config).get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
    return int(head_dim * share)


def _mistral(writer: gguf.GGUFWriter, config: Any) -> None:
    if config.sliding_window:
        writer.add_sliding_window(config.sliding_window)


def _qwen2(writer: gguf.GGUFWriter, config: Any) -> None:
    _refuse_unless(not config.use_sliding_window, "sliding windows in a Qwen")


def _gemma2(writer: gguf.GGUFWriter, config: Any) -> None:
    _check_windows(config, every=2)
    _check_scale(config, larger=46)
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_sliding_window(config.sliding_window)


def _gemma3(writer: gguf.GGUFWriter, config: Any) -> None:
    _check_windows(config, every=6)
    _check_scale(config, larger=62)
    _refuse_unless(not config.attn_logit_softcapping, "capped attention in a Gemma 3")
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_sliding_window(config.sliding_window)
    local = config.rope_parameters["sliding_attention"]
    _refuse_unless(local.get("rope_type", "default") == "default", "local positions that are scaled")
    writer.add_rope_freq_base_swa(local["rope_theta"])


def _phi3(writer: gguf.GGUFWriter, config: Any) -> None:
    rope, original = full_rope(config), config.original_max_position_embeddings
    writer.add_rope_scaling_orig_ctx_len(original)
    writer.add_sliding_window(config.sliding_window or 0)  # zero says that it is a Phi 4
    if rope.get("rope_type") == "longrope":
        scale = config.max_position_embeddings / original
        factor = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        writer.add_rope_scaling_attn_factors(rope.get("attention_factor") or factor)


def _smollm3(writer: gguf.GGUFWriter, config: Any) -> None:
    layers = range(1, config.num_hidden_layers + 1)
    expected = [int(layer % 4 != 0) for layer in layers]
    _refuse_unless(list(config.no_rope_layers) == expected, "another pattern of layers without positions")
    _refuse_unless(not config.use_sliding_window, "sliding windows in a SmolLM 3")


def _granite(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)


def _check_windows(config: Any, *, every: int) -> None:
    """llama.cpp has the pattern built in: every so many layers one with full attention."""
    kinds = [
        "full_attention" if layer % every == 0 else "sliding_attention"
        for layer in range(1, config.num_hidden_layers + 1)
    ]
    _refuse_unless(list(config.layer_types) == kinds, "another pattern of sliding windows")


def _check_scale(config: Any, *, larger: int) -> None:
    """llama.cpp scales queries by the head's size, in the largest model by the hidden size a head."""
    whole = config.hidden_size // config.num_attention_heads
    expected = whole if config.num_hidden_layers == larger else config.head_dim
    _refuse_unless(config.query_pre_attn_scalar == expected, "queries scaled in another way")


def _refuse_unless(known: bool, what: str) -> None:
    if not known:
        raise StudioError(f"This model has {what}, which is not written as GGUF here.", WAY_OUT)


FAMILIES: dict[str, Family] = {
    "llama": Family("LLAMA", interleaved=True),
    "mistral": Family("LLAMA", interleaved=True, more=_mistral),
    "qwen2": Family("QWEN2", more=_qwen2),
    "qwen3": Family("QWEN3", more=_qwen2),
    "gemma2": Family("GEMMA2", raised_norms=True, activation="gelu_pytorch_tanh", more=_gemma2),
    "gemma3_text": Family("GEMMA3", raised_norms=True, activation="gelu_pytorch_tanh", more=_gemma3),
    "phi3": Family("PHI3", more=_phi3),
    "smollm3": Family("SMOLLM3", interleaved=True, more=_smollm3),
    "olmo2": Family("OLMO2"),
    "granite": Family("GRANITE", interleaved=True, more=_granite),
}  # fmt: skip
"""By `model_type` of the text model."""


def find_family(model_type: str) -> Family:
    """The family of this `model_type`. Raises a StudioError that lists those there are."""
    family = FAMILIES.get(model_type)
    if family is None:
        raise StudioError(
            f"A {model_type} model is not written as GGUF here. Known are {', '.join(FAMILIES)}.", WAY_OUT
        )
    return family
