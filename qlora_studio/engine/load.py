"""From a folder to a 4-bit model with an adapter. Strict: what is missing, foreign or of another shape is refused."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from accelerate.hooks import remove_hook_from_submodules
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from qlora_studio.core.config import LoraSettings
from qlora_studio.core.errors import StudioError
from qlora_studio.core.plan import GIB
from qlora_studio.engine.accelerator.attention import has_fused
from qlora_studio.engine.accelerator.choose import choose_accelerator
from qlora_studio.engine.accelerator.protocol import Accelerator
from qlora_studio.engine.adapters import ADAPTER, file_name, keep_norms, peft_settings, prepare_start, saved_tensors
from qlora_studio.engine.host_embeddings import look_tokens_up_on_host, place_embeddings_on_host
from qlora_studio.engine.kernels.attention import (
    ONE_QUERY,
    OWN_ATTENTION,
    REPEATED_HEADS,
    layer_configs,
    register_one_query,
    register_repeated_heads,
)
from qlora_studio.engine.kernels.replace import replace_forwards
from qlora_studio.engine.load_faults import LOAD_ERRORS, explain_fault
from qlora_studio.engine.oom import is_out_of_memory
from qlora_studio.faults import fault
from qlora_studio.weight_files import find_weight_files

SAVED, ORIGINAL = ".modules_to_save.", ".original_module."
"""In names of modules that an adapter brings whole: the trained copy, and the base's own."""
PREFIX = "base_model.model."
"""What PEFT puts in front of the names of a base's parameters."""


@dataclass(frozen=True, slots=True)
class Device:
    """Where the arithmetic happens, and in which number format."""

    accelerator: Accelerator
    dtype: torch.dtype

    @property
    def type(self) -> str:
        """`cuda`, `cpu`: the accelerator's name."""
        return self.accelerator.name

    @property
    def torch(self) -> torch.device:
        return self.accelerator.device


def choose_device(compute: str = "auto") -> Device:
    """The preferred accelerator of this machine, computing in `bf16`, `fp16`, `fp32` or, with `auto`, the safest fast.

    Raises a StudioError for a format that it cannot compute in.
    """
    accelerator = choose_accelerator()
    return Device(accelerator, accelerator.choose_dtype(compute))


def load_base(
    folder: Path, device: Device, *, four_bit: bool = True, embeddings_on_host: bool = False
) -> PreTrainedModel:
    """A causal language model, frozen; its linear layers in NF4 with double quantisation unless `four_bit` is false.

    Embeddings, norms and head stay in the device's dtype; nothing is cast up. With `embeddings_on_host` the input
    embeddings never leave the computer's memory, where tokens are looked up; tied ones are needed by the head and do.
    Raises a StudioError where a tensor is missing or of another shape, the architecture is not a causal language model,
    or the memory does not suffice.
    """
    find_weight_files(folder)  # the very files that an export merges and an identity hashes, or a refusal
    config = read_text_config(folder)
    places: dict[str, Any] = {"": device.torch}
    if embeddings_on_host and device.type != "cpu":
        places = place_embeddings_on_host(config, device.torch)
    model = _read_model(folder, config, device, places, four_bit=four_bit)
    model.requires_grad_(False)
    model.config.use_cache = False
    leave_file(model)
    keep_layout(model, canonical=True)
    if len(places) > 1:
        remove_hook_from_submodules(model)  # they would copy the embeddings to the card in every forward pass
        look_tokens_up_on_host(model, device.torch)
    return model


def _read_model(
    folder: Path, config: Any, device: Device, places: Mapping[str, Any], *, four_bit: bool
) -> PreTrainedModel:
    """What transformers makes of a folder, whole or refused; `places` is its device map."""
    quantisation = None
    if four_bit and getattr(config, "quantization_config", None) is None:
        quantisation = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=device.dtype,
            llm_int8_enable_fp32_cpu_offload=len(places) > 1,  # else a layer on the host is refused, quantised or not
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fault("load")
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                quantization_config=quantisation,
                dtype=device.dtype,
                attn_implementation=choose_attention(config, device),
                device_map=places,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except LOAD_ERRORS as error:
        if is_out_of_memory(error):
            raise _no_room(folder, device) from error
        raise explain_fault(error, folder) from error
    model: PreTrainedModel
    model, info = loaded
    lost = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if lost:
        raise StudioError(
            f"{len(lost)} weights of the model are missing or of another shape, first {lost[0]}.",
            "Download it again.",
            where=str(folder),
        )
    return model


def leave_file(model: PreTrainedModel) -> None:
    """Copies what was not quantised out of the weights' file, which otherwise stays mapped whole for an embedding's sake.

    Measured with SmolLM2-135M: 160 MiB less resident memory throughout a run on a processor.
    """
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and getattr(parameter, "quant_state", None) is None:
            parameter.data = parameter.data.clone()


def _no_room(folder: Path, device: Device) -> StudioError:
    """What was loaded, how far it came and what can be done."""
    there = device.accelerator.peak().allocated_bytes / GIB
    return StudioError(
        f"The model does not fit: memory ran out on {device.accelerator.label} while it was loaded, "
        f"after {there:.2f} GiB.",
        "Close other programs that use the memory, raise the memory budget, set offload to both, or "
        "choose a smaller base.",
        where=str(folder),
        field="memory.budget_gib",
    )


def choose_attention(config: Any, device: Device | None = None) -> str:
    """PyTorch's fused attention, or the plain one for the few architectures that refuse it (Gemma 2, gpt-oss).

    Where the device has no fused kernel for grouped queries, keys and values are repeated so that another one runs.
    """
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if not getattr(kind, "_supports_sdpa", True):
        return "eager"
    if device is None or not _groups_queries(config) or config.model_type in OWN_ATTENTION:
        return "sdpa"
    if has_fused(device.accelerator.attention_kernels(device.dtype, grouped=True)):
        return "sdpa"
    register_repeated_heads()
    return REPEATED_HEADS


def _groups_queries(config: Any) -> bool:
    """Whether there are fewer heads of keys and values than of queries."""
    layers = layer_configs(config.get_text_config())
    heads = [
        (getattr(layer, "num_attention_heads", None), getattr(layer, "num_key_value_heads", None)) for layer in layers
    ]
    return any((keys or queries) != queries for queries, keys in heads)


def read_text_config(folder: Path) -> Any:
    """The transformers config of a folder, refused unless it is a text model that predicts the next token."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (AttributeError, TypeError) as error:
        raise explain_fault(error, folder) from error
    except (OSError, ValueError, KeyError) as error:
        raise StudioError(
            f"The model is of a kind this version does not know: {_first_line(error)}", where=str(folder)
        ) from error
    architectures = config.architectures or []
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or not any(
        name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in architectures
    ):
        raise StudioError(
            f"This is a {config.model_type} model ({', '.join(architectures) or 'unnamed'}), not one that writes text.",
            "Choose a causal language model.",
            where=str(folder / "config.json"),
            field="architectures",
        )
    return config


def keep_layout(model: nn.Module, *, canonical: bool) -> None:
    """Whether 4-bit weights stay in their canonical layout on a CPU.

    bitsandbytes 0.50 repacks a layer for AVX512-BF16 at its first inference forward; a backward pass and a
    dequantisation after that read wrong weights of the right shape. Only a process that will never train again may
    allow it (decoding is several times faster then). What DoRA needs of the weights is computed before.
    """
    if not canonical:
        keep_norms(model)
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = not canonical and _packed_is_fast() and can_be_repacked(module)


def can_be_repacked(layer: Any) -> bool:
    """Whether bitsandbytes' layout for AVX512-BF16 has room for a layer's shape: whole blocks of 32 outputs and of a scale's
    inputs. It raises an assertion, or an error about shapes, for others."""
    state = layer.weight.quant_state
    return state is not None and layer.out_features % 32 == 0 and layer.in_features % state.blocksize == 0


def prepare_answers(model: nn.Module, device: Device) -> None:
    """Makes a model that will never train again write answers as fast as this device can."""
    keep_layout(model, canonical=False)
    if device.type != "cpu":
        return
    register_one_query()
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "_attn_implementation", None) == "sdpa" and config.model_type not in OWN_ATTENTION:
            config._attn_implementation = ONE_QUERY


def _packed_is_fast() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported())


def attach_adapter(model: PreTrainedModel, lora: LoraSettings, dtype: torch.dtype, seed: int) -> PeftModel:
    """A fresh adapter on the layers that the settings choose: A (rank, in) random, B (out, rank) zero, or as they say.

    The adapter's own weights are kept in `dtype`; the forward casts them to the activations' dtype, never the reverse.
    """
    torch.manual_seed(seed)
    peft_model: PeftModel = get_peft_model(model, peft_settings(model, lora), autocast_adapter_dtype=False)
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    prepare_start(peft_model, lora)
    replace_forwards(peft_model)
    return peft_model


def load_adapter(model: PreTrainedModel, folder: Path, dtype: torch.dtype | None = None) -> PeftModel:
    """The adapter of a folder on this base, of any kind that a merge understands: also saved modules and single tokens.

    Raises a StudioError unless its tensors are those the base needs.
    """
    weights, config_file = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    if not weights.is_file() or not config_file.is_file():
        raise StudioError("There is no adapter in this folder.", "Choose a run that has saved one.", where=str(folder))
    values, state = json.loads(config_file.read_text(encoding="utf-8")), _read_tensors(weights)
    _grow_embeddings(model, state)
    peft_model: PeftModel = get_peft_model(model, LoraConfig.from_peft_type(**values), autocast_adapter_dtype=False)
    expected = set(saved_tensors(peft_model))
    base = {f"{PREFIX}{name}" for name, _ in peft_model.get_base_model().named_parameters(remove_duplicate=False)}
    if odd := sorted((expected - set(state)) | (set(state) - expected - base)):
        raise StudioError(
            f"This adapter was made for another base: {len(odd)} weights do not match, first {odd[0]}.",
            "Choose the base it was trained on.",
            where=str(weights),
        )
    for name, parameter in peft_model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.to(dtype or state[file_name(name)].dtype)
    try:
        set_peft_model_state_dict(peft_model, state, adapter_name=ADAPTER)
    except RuntimeError as error:
        raise StudioError(
            f"This adapter was made for another base: {_first_line(error)}", where=str(weights)
        ) from error
    replace_forwards(peft_model)
    return peft_model


def _read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """An adapter's tensors by the names that PEFT loads; some files hold a saved module twice, and its base's values."""
    state = load_file(file)
    trained = {name.replace(SAVED, "."): value for name, value in state.items() if SAVED in name}
    return {name: value for name, value in state.items() if SAVED not in name and ORIGINAL not in name} | trained


def _grow_embeddings(model: PreTrainedModel, state: Mapping[str, torch.Tensor]) -> None:
    """Gives the base as many token embeddings as the adapter brings, where that is more."""
    there: Any = model.get_input_embeddings()
    rows = [len(tensor) for name, tensor in state.items() if name.endswith("embed_tokens.weight")]
    if rows and max(rows) > len(there.weight):
        model.resize_token_embeddings(max(rows), mean_resizing=False)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".") + "."
