"""A model's shape from its `config.json` alone: a local folder or a hub id, no weights, no torch, no transformers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_studio.core.config import DEMO_BASE
from qlora_studio.core.errors import StudioError
from qlora_studio.core.plan import ModelShape
from qlora_studio.hub import hub_answers
from qlora_studio.planner.families import FAMILIES
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES

HUB_SECONDS = 5
"""How long the hub may take to answer before the plan goes on without it."""
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


def read_shape(base: str, models_folder: Path) -> ModelShape:
    """The shape of a model folder, of a model under `models_folder`, or of a hub id. Raises StudioError."""
    config = find_config(base, models_folder)
    return REFERENCE_SHAPES["SmolLM2-135M"] if config is None else shape_from_file(config, base)


def find_config(base: str, models_folder: Path) -> Path | None:
    """The `config.json` of a model, from the hub where it is not here; None for the demo model before it is fetched."""
    named = Path(base).expanduser()
    for folder in (named, models_folder / base, models_folder / base.replace("/", "--")):
        if (folder / "config.json").is_file():
            return folder / "config.json"
    if named.is_absolute() and named.is_dir():
        raise StudioError(
            "This folder has no config.json.", "Choose a folder in transformers format.", where=str(named)
        )
    return None if base == DEMO_BASE else _fetch_config(base)


def shape_from_file(path: Path, name: str) -> ModelShape:
    """The shape in a `config.json`. Raises a StudioError that names the file."""
    try:
        text = path.read_bytes()
        values = json.loads(text)
    except (OSError, ValueError) as error:
        raise StudioError(
            f"This config.json cannot be read: {error}.", "Fetch the model again.", where=str(path)
        ) from None
    if not isinstance(values, dict):
        raise StudioError("This config.json is not a JSON object.", "Fetch the model again.", where=str(path))
    shape = shape_from_config(values, name, where=str(path))
    return shape.model_copy(update={"config_hash": hashlib.sha256(text).hexdigest()[:16]})


def shape_from_config(values: Mapping[str, Any], name: str, where: str = "") -> ModelShape:
    """The shape in the values of a `config.json`. Raises StudioError where it is no causal language model."""
    _refuse_other_models(values, where)
    text = values.get("text_config")
    inner: Mapping[str, Any] = {**values, **text} if isinstance(text, Mapping) else values
    family = str(inner.get("model_type") or "")
    if not family:
        raise StudioError("This config.json does not say its model_type.", "Fetch the model again.", where=where)
    sizes = {key: _read_size(inner, key, where) for key in NAMES}
    heads = sizes["heads"]
    biased = bool(inner.get("attention_bias", family == "qwen2"))
    return ModelShape(
        name=name,
        family=family,
        hidden=sizes["hidden"],
        layers=sizes["layers"],
        heads=heads,
        vocab=sizes["vocab"],
        kv_heads=_positive(inner.get("num_key_value_heads")) or heads,
        head_dim=_positive(inner.get("head_dim")) or _default_head_dim(family, sizes),
        intermediate=_positive(inner.get("intermediate_size"))
        or _positive(inner.get("n_inner"))
        or 4 * sizes["hidden"],
        tied_embeddings=bool(inner.get("tie_word_embeddings", _ties_by_default(family))),
        max_positions=_positive(inner.get("max_position_embeddings")) or _positive(inner.get("n_positions")) or 2048,
        qk_norm=family in ("qwen3", "gemma3_text"),
        attention_bias=biased,
        output_bias=biased and family != "qwen2",
        mlp_bias=bool(inner.get("mlp_bias", False)),
        sliding_window=_sliding_window(inner, family),
        sliding_layers=_count_sliding(inner, family, sizes["layers"]),
        rotary_dim=_rotary_dim(inner),
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
    for name in NAMES[key]:
        if (size := _positive(values.get(name))) is not None:
            return size
    raise StudioError(
        f"This config.json does not say its {key}.",
        f"One of {', '.join(NAMES[key])} has to be a positive whole number.",
        where=where,
        field=NAMES[key][0],
    )


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


def _rotary_dim(values: Mapping[str, Any]) -> int | None:
    """Rotated part of a head, where `partial_rotary_factor` makes it less than all (Phi-4-mini)."""
    rope = values.get("rope_parameters")
    nested = rope.get("partial_rotary_factor") if isinstance(rope, Mapping) else None
    share = values.get("partial_rotary_factor") or nested
    if not isinstance(share, int | float) or share >= 1:
        return None
    head_dim = _positive(values.get("head_dim")) or values["hidden_size"] // values["num_attention_heads"]
    return int(head_dim * share)


def _attends_everywhere(values: Mapping[str, Any]) -> bool:
    """Whether every layer is an attention layer without experts, and all is text; others are measured instead."""
    experts = any(_positive(values.get(name)) for name in ("num_experts", "num_local_experts", "n_routed_experts"))
    kinds = set(values.get("layer_types") or ())
    sees = "vision_config" in values or "audio_config" in values
    return not experts and not sees and kinds <= {"full_attention", "sliding_attention"}


def _fetch_config(base: str) -> Path:
    """`config.json` of a hub id, from the cache or the hub. One sentence where neither has it."""
    import httpx
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        online = hub_answers()
        return Path(hf_hub_download(base, "config.json", etag_timeout=HUB_SECONDS, local_files_only=not online))
    except HFValidationError:
        raise StudioError(f"'{base}' is neither a model folder nor a hub id.", "Mend the path or the name.") from None
    except GatedRepoError:
        raise StudioError(
            f"'{base}' needs a licence accepted on the hub.", "Accept it there, then set HF_TOKEN."
        ) from None
    except RepositoryNotFoundError:
        raise StudioError(
            f"The hub has no model '{base}'.", "Mend the name, or set HF_TOKEN if it is private."
        ) from None
    except LocalEntryNotFoundError:
        raise _offline(base) from None
    except EntryNotFoundError:
        raise StudioError(f"'{base}' has no config.json.", "Choose a model in transformers format.") from None
    except (OSError, httpx.HTTPError):
        raise _offline(base) from None


def _offline(base: str) -> StudioError:
    return StudioError(
        f"The hub could not be reached, and '{base}' is not on this computer.",
        "Connect, or give the folder of a model.",
    )
