"""A GGUF file back in torch: its numbers as they are encoded, in the model that base and adapter belong to.

So a file is asked what the chat was asked with no runtime of llama.cpp installed. Where one is, `llama_cpp.py` asks it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM, PreTrainedModel

from qlora_studio.core.errors import StudioError
from qlora_studio.engine.gguf_file.families import Family, find_family
from qlora_studio.engine.gguf_file.write import ROTATED
from qlora_studio.engine.load import Device, choose_attention, read_text_config


def load_gguf(path: Path, base: Path, device: Device) -> PreTrainedModel:
    """The model of `base` with the weights of the file, in the device's dtype.

    Raises a StudioError where the file lacks a weight of the model or holds one that is not its.
    """
    config: Any = read_text_config(base).get_text_config()
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    family = find_family(config.model_type)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.arch], config.num_hidden_layers)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    rows = int(tensors["token_embd.weight"].shape[1])
    config.vocab_size, config.tie_word_embeddings = rows, "output.weight" not in tensors
    with init_empty_weights(include_buffers=False):
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=device.dtype, attn_implementation=choose_attention(config, device)
        )
    taken, head = set(), model.get_output_embeddings()
    tied = [f"{name}.weight" for name, module in model.named_modules() if module is head and config.tie_word_embeddings]
    for parameter in [name for name, _ in model.named_parameters() if name not in tied]:
        name = names.get_name(parameter, try_suffixes=(".weight", ".bias"))
        if name not in tensors:
            raise StudioError(f"The GGUF file has no {parameter}.", "Report this: it should be impossible.")
        owner, _, leaf = parameter.rpartition(".")
        weight = _decode(tensors[name], family, config).to(device.torch, device.dtype)
        setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(weight, requires_grad=False))
        taken.add(name)
    if left := sorted(name for name in set(tensors) - taken if not name.startswith("rope_")):
        raise StudioError(f"The GGUF file holds {left[0]}, which the model has not.", "Report this: it is a fault.")
    model.tie_weights()
    return model.to(device.torch).eval()  # type: ignore[no-any-return]


def _decode(tensor: Any, family: Family, config: Any) -> torch.Tensor:
    """One tensor in fp32 as transformers lays it out."""
    weight = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
    weight = weight.reshape(tuple(reversed(tensor.shape.tolist())))
    rotated = family.interleaved and ROTATED.search(tensor.name)
    if rotated:
        heads = config.num_attention_heads if rotated[1] == "q" else config.num_key_value_heads
        weight = part(weight, heads)
    return weight - 1 if family.raised_norms and tensor.name.endswith("norm.weight") else weight


def part(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head from pairs to two halves: what `interleave` has done, undone."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, half, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
