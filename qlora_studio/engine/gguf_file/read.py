"""A GGUF file back in torch: its numbers as they are encoded, in the model that base and adapter belong to.

So a file is asked what the chat was asked with no runtime of llama.cpp installed. Where one is, `llama_cpp.py` asks it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM, PreTrainedModel

from qlora_studio.core.errors import StudioError
from qlora_studio.engine.gguf_file.families import Family, find_family
from qlora_studio.engine.gguf_file.write import ROTATED
from qlora_studio.engine.layerwise import LayerwiseModel
from qlora_studio.engine.load import Device, choose_attention, read_text_config

ROW_VALUES = 4 << 20
"""Values that are in fp32 at once."""


class GgufModel:
    """A GGUF file beside the model of its base, whose weights it holds by other names."""

    def __init__(self, path: Path, base: Path, device: Device) -> None:
        """Raises a StudioError where the file lacks a weight of the model or holds one that is not its."""
        self.device = device
        self.config: Any = read_text_config(base).get_text_config()
        if getattr(self.config, "quantization_config", None) is not None:
            del self.config.quantization_config
        self.family = find_family(self.config.model_type)
        self.tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
        rows = int(self.tensors["token_embd.weight"].shape[1])
        self.config.vocab_size, self.config.tie_word_embeddings = rows, "output.weight" not in self.tensors
        with init_empty_weights(include_buffers=False):
            self.model: Any = AutoModelForCausalLM.from_config(
                self.config, dtype=device.dtype, attn_implementation=choose_attention(self.config, device)
            )
        self.model.tie_weights()
        self.names = self._match()

    def read(self, parameter: str) -> torch.Tensor:
        """A parameter of the model, in the device's dtype on the processor."""
        return _decode(self.tensors[self.names[parameter]], self.family, self.config, self.device.dtype)

    def _match(self) -> dict[str, str]:
        """The file's name of each parameter."""
        known = gguf.get_tensor_name_map(gguf.MODEL_ARCH[self.family.arch], self.config.num_hidden_layers)
        names = {}
        for parameter, _ in self.model.named_parameters():
            name = known.get_name(parameter, try_suffixes=(".weight", ".bias"))
            if name not in self.tensors:
                raise StudioError(f"The GGUF file has no {parameter}.", "Report this: it should be impossible.")
            names[parameter] = name
        left = sorted(name for name in set(self.tensors) - set(names.values()) if not name.startswith("rope_"))
        if left:
            raise StudioError(f"The GGUF file holds {left[0]}, which the model has not.", "Report this: it is a fault.")
        return names


def load_gguf(path: Path, base: Path, device: Device) -> PreTrainedModel:
    """The model of `base` with the weights of the file, in the device's dtype.

    Raises a StudioError where the file lacks a weight of the model or holds one that is not its.
    """
    file = GgufModel(path, base, device)
    for parameter in file.names:
        owner, _, leaf = parameter.rpartition(".")
        weight = file.read(parameter).to(device.torch)
        setattr(file.model.get_submodule(owner), leaf, torch.nn.Parameter(weight, requires_grad=False))
    file.model.tie_weights()
    return file.model.to(device.torch).eval()  # type: ignore[no-any-return]


def layers_of_gguf(path: Path, base: Path, device: Device) -> LayerwiseModel:
    """The same model with its weights left in the file. Raises a StudioError as `load_gguf` does."""
    file = GgufModel(path, base, device)
    return LayerwiseModel(file.model, file.read, device)


def _decode(tensor: Any, family: Family, config: Any, dtype: torch.dtype) -> torch.Tensor:
    """One tensor as transformers lays it out, a part of its rows in fp32 at a time."""
    shape = tuple(reversed(tensor.shape.tolist()))
    stored, columns = np.atleast_2d(tensor.data), shape[-1]
    weight, step = torch.empty(len(stored), columns, dtype=dtype), max(1, ROW_VALUES // columns)
    for first in range(0, len(stored), step):
        rows = gguf.dequantize(stored[first : first + step], tensor.tensor_type)
        raised = family.raised_norms and tensor.name.endswith("norm.weight")
        weight[first : first + step] = torch.from_numpy(np.require(rows - 1 if raised else rows, requirements="W"))
    weight = weight.reshape(shape)
    rotated = family.interleaved and ROTATED.search(tensor.name)
    if rotated:
        weight = part(weight, config.num_attention_heads if rotated[1] == "q" else config.num_key_value_heads)
    return weight


def part(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head from pairs to two halves: what `interleave` has done, undone."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, half, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
