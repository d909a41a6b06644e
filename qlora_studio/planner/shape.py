"""A model's shape from its `config.json` alone: no weights, no network, no torch, no transformers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_studio.bases import read_model_config
from qlora_studio.core.errors import StudioError
from qlora_studio.core.plan import ModelShape
from qlora_studio.planner.families import FAMILIES

GEMMA_PATTERN = 6
"""Every so many layers of Gemma 3 one looks at all tokens."""
LOGIT_CHANGES = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier_scale",
)
"""Settings with which a model scales or caps its logits behind the head."""
NAMES: dict[str, tuple[str, ...]] = {
    "hidden": ("hidden_size", "n_embd", "d_model", "dim"),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "vocab": ("vocab_size",),
}
"""What each size is called in the configurations that are about."""
OPTIONAL: dict[str, tuple[str, ...]] = {
    "kv_heads": ("num_key_value_heads", "n_head_kv", "num_kv_heads"),
    "head_dim": ("head_dim",),
    "intermediate": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"),
    "positions": ("max_position_embeddings", "n_positions"),
}
"""The same for sizes that may be left out."""
MOST = {
    "hidden": 1 << 17, "layers": 1000, "heads": 4096, "vocab": 1 << 22,
    "kv_heads": 4096, "head_dim": 1 << 14, "intermediate": 1 << 20, "positions": 1 << 40,
}  # fmt: skip
"""No model that anyone has published comes near; a file that says more is broken or wants to do harm."""


def read_shape(folder: Path, name: str) -> ModelShape:
    """The shape of the model in a folder. Raises a StudioError that names its `config.json`."""
    values = read_model_config(folder)
    path = folder / "config.json"
    shape = shape_from_config(values, name, where=str(path))
    return shape.model_copy(update={"config_hash": hashlib.sha256(path.read_bytes()).hexdigest()[:16]})


def shape_from_config(values: Mapping[str, Any], name: str, where: str = "") -> ModelShape:
    """The shape in the values of a `config.json`. Raises StudioError where it is no causal language model."""
    _refuse_other_models(values, where)
    text = values.get("text_config")
    inner: Mapping[str, Any] = {**values, **text} if isinstance(text, Mapping) else values
    family = str(inner.get("model_type") or "")
    if not family:
        raise StudioError("This config.json does not say its model_type.", "Fetch the model again.", where=where)
    sizes = {key: _read_size(inner, key, where) for key in NAMES}
    given = {key: _read_if_given(inner, key, where) for key in OPTIONAL}
    heads = sizes["heads"]
    head_dim = given["head_dim"] or _default_head_dim(family, sizes)
    biased = bool(inner.get("attention_bias", family == "qwen2"))
    return ModelShape(
        name=name,
        family=family,
        hidden=sizes["hidden"],
        layers=sizes["layers"],
        heads=heads,
        vocab=sizes["vocab"],
        kv_heads=given["kv_heads"] or heads,
        head_dim=head_dim,
        intermediate=given["intermediate"] or 4 * sizes["hidden"],
        tied_embeddings=bool(inner.get("tie_word_embeddings", _ties_by_default(family))),
        max_positions=given["positions"] or 2048,
        qk_norm=family in ("qwen3", "gemma3_text"),
        attention_bias=biased,
        output_bias=biased and family != "qwen2",
        mlp_bias=bool(inner.get("mlp_bias", False)),
        sliding_window=_sliding_window(inner, family),
        sliding_layers=_count_sliding(inner, family, sizes["layers"]),
        rotary_dim=_rotary_dim(inner, head_dim),
        whole_logits=any(inner.get(name) not in (None, 1, 1.0) for name in LOGIT_CHANGES),
        exact=family in FAMILIES and _attends_everywhere(inner),
    )


def _refuse_other_models(values: Mapping[str, Any], where: str) -> None:
    """Encoders, encoder-decoders and models in a foreign quantisation are named for what they are."""
    architectures = [str(item) for item in values.get("architectures") or []]
    decoders = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
    decodes = [item for item in architectures if item.endswith(decoders)]
    if values.get("is_encoder_decoder") or (architectures and not decodes):
        kind = architectures[0] if architectures else "an encoder-decoder"
        raise StudioError(
            f"This is no causal language model but {kind}.",
            "Choose a model whose architecture ends in ForCausalLM.",
            where=where,
        )
    quantised = values.get("quantization_config")
    method = str(quantised.get("quant_method", "")) if isinstance(quantised, Mapping) else ""
    if method and method != "bitsandbytes":
        raise StudioError(
            f"This model is already quantised with {method}.", "Choose the original model in 16 bit.", where=where
        )


def _read_size(values: Mapping[str, Any], key: str, where: str) -> int:
    size = _first_size(values, key, NAMES[key], where)
    if size is not None:
        return size
    raise StudioError(
        f"This config.json does not say its {key}.",
        f"One of {', '.join(NAMES[key])} has to be a positive whole number.",
        where=where,
        field=NAMES[key][0],
    )


def _read_if_given(values: Mapping[str, Any], key: str, where: str) -> int | None:
    return _first_size(values, key, OPTIONAL[key], where)


def _first_size(values: Mapping[str, Any], key: str, names: tuple[str, ...], where: str) -> int | None:
    """The first of these values that is a positive whole number. Raises a StudioError where no model has so much."""
    for name in names:
        size = _positive(values.get(name))
        if size is not None and size > MOST[key]:
            raise StudioError(
                f"This config.json says {name} {size:,}, and no model has more than {MOST[key]:,}.",
                "Fetch the model again from where you trust it.",
                where=where,
                field=name,
            )
        if size is not None:
            return size
    return None


def _positive(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _default_head_dim(family: str, sizes: Mapping[str, int]) -> int:
    """Where `head_dim` is not written: the class default of two families, else an even share of the hidden size."""
    return {"gemma3_text": 256, "qwen3": 128}.get(family) or sizes["hidden"] // sizes["heads"]


def _ties_by_default(family: str) -> bool:
    """transformers leaves `tie_word_embeddings` out of the file where it has the class default."""
    return family.startswith("gemma")


def _sliding_window(values: Mapping[str, Any], family: str) -> int | None:
    """The window where layers use one: always with Mistral, Phi-3 and Gemma, with Qwen only if it is switched on."""
    if family.startswith("qwen") and not values.get("use_sliding_window", False):
        return None
    return _positive(values.get("sliding_window"))


def _count_sliding(values: Mapping[str, Any], family: str, layers: int) -> int:
    """Layers with a window: as the file lists them, else Gemma's five of six and every layer of the others."""
    if _sliding_window(values, family) is None:
        return 0
    kinds = values.get("layer_types")
    if isinstance(kinds, list):
        return sum(kind == "sliding_attention" for kind in kinds)
    if family == "gemma3_text":
        return layers - layers // GEMMA_PATTERN
    if family.startswith("qwen"):
        return max(0, layers - (_positive(values.get("max_window_layers")) or layers))
    return layers


def _rotary_dim(values: Mapping[str, Any], head_dim: int) -> int | None:
    """Rotated part of a head, where `partial_rotary_factor` makes it less than all (Phi-4-mini)."""
    rope = values.get("rope_parameters")
    nested = rope.get("partial_rotary_factor") if isinstance(rope, Mapping) else None
    share = values.get("partial_rotary_factor") or nested
    if not isinstance(share, int | float) or share >= 1:
        return None
    return int(head_dim * share)


def _attends_everywhere(values: Mapping[str, Any]) -> bool:
    """Whether every layer is an attention layer without experts, and all is text; others are measured instead."""
    experts = any(_positive(values.get(name)) for name in ("num_experts", "num_local_experts", "n_routed_experts"))
    kinds = set(values.get("layer_types") or ())
    sees = "vision_config" in values or "audio_config" in values
    return not experts and not sees and kinds <= {"full_attention", "sliding_attention"}
