"""An adapter alone as GGUF, which llama.cpp lays on a GGUF file of its base: `llama-cli -m BASE.gguf --lora FILE`.

llama.cpp multiplies B·A by alpha / rank, with one alpha for the whole file. The rank is a layer's own, but rsLoRA's scale
and a layer's own alpha have no place, so what they add is multiplied into B: every layer is as strong as in the chat.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from qlora_studio.core.errors import StudioError
from qlora_studio.engine.gguf_file.families import find_family, write_configuration
from qlora_studio.engine.gguf_file.write import ROTATED, About, describe, interleave
from qlora_studio.engine.load import read_text_config
from qlora_studio.engine.manifest import sync
from qlora_studio.engine.merge import MergedWeights

WAY_OUT = "Export a GGUF file of the merged model instead, or the adapter in PEFT's format."


class GgufAdapter:
    """The factors of an adapter in fp32, by llama.cpp's names. It is small: all of it is in memory while it is written."""

    def __init__(self, merged: MergedWeights, about: About) -> None:
        """Raises a StudioError for an adapter or base that llama.cpp could not put together."""
        self.merged, self.adapter, self.about = merged, merged.adapter, about
        self.config: Any = read_text_config(merged.recipe.base).get_text_config()
        self.family = find_family(self.config.model_type)
        self.arch = gguf.MODEL_ARCH[self.family.arch]
        write_configuration(
            gguf.GGUFWriter(None, ""), self.config, self.family
        )  # refuses what llama.cpp would not follow
        self.alpha = float(self.adapter.config["lora_alpha"]) or 1.0
        self._check_kind()
        self.names = dict(self._name_layers())

    @property
    def bytes(self) -> int:
        """Of all factors, without the header."""
        files = [self.adapter.pairs[module].names[side] for module in self.names for side in "AB"]
        return sum(4 * int(np.prod(self.adapter.file.shape(name))) for name in files)

    def write(self, path: Path) -> None:
        """Writes the file; one that is not whole never has this name."""
        part = path.with_name(path.name + ".part")
        writer = gguf.GGUFWriter(part, gguf.MODEL_ARCH_NAMES[self.arch])
        describe(writer, "adapter", self.about)
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", self.alpha)
        for module, name in self.names.items():
            for side, factor in zip("ab", self.factors(module), strict=True):
                writer.add_tensor(f"{name}.lora_{side}", factor.contiguous().numpy())
        self.merged.check_used()
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        sync(part)
        part.replace(path)

    def factors(self, module: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A (rank, in) and B (out, rank) of a layer as the file holds them, in fp32."""
        a, b, scale = self.adapter.factors(module)
        b = b * (scale * a.shape[0] / self.alpha)  # llama.cpp: alpha / rank
        rotated = self.family.interleaved and ROTATED.search(self.names[module])
        if rotated:
            queries = rotated[1] == "q"
            b = interleave(b, self.config.num_attention_heads if queries else self.config.num_key_value_heads)
        return a, b

    def check(self, path: Path) -> None:
        """Raises a StudioError where the file does not hold every factor of the adapter at its strength."""
        reader = gguf.GGUFReader(path)
        held = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
        alpha = reader.fields["adapter.lora.alpha"].contents()
        wrong = len(held) != 2 * len(self.names) or alpha != np.float32(self.alpha)
        for module, name in self.names.items():
            wrong = wrong or any(
                not torch.equal(held.get(f"{name}.lora_{side}", torch.empty(0)), factor)
                for side, factor in zip("ab", self.factors(module), strict=True)
            )
        if wrong:
            raise StudioError("The GGUF file does not hold the adapter.", "Export again; the disk may be failing.")

    def _check_kind(self) -> None:
        """Raises a StudioError for what does not fit into two factors a layer."""
        adapter = self.adapter
        kinds = {kind for pair in adapter.pairs.values() for kind in pair.names}
        found = {
            "DoRA": "magnitude_vector" in kinds,
            "factors on embeddings": "embedding_A" in kinds,
            "biases": bool(kinds & {"A bias", "B bias"}),
            "embeddings of single tokens": bool(adapter.tokens),
            "modules saved whole": bool(adapter.whole),
        }
        if present := [what for what, there in found.items() if there]:
            raise StudioError(f"This adapter has {present[0]}, which a LoRA file for llama.cpp cannot hold.", WAY_OUT)

    def _name_layers(self) -> Iterator[tuple[str, str]]:
        names = gguf.get_tensor_name_map(self.arch, self.config.num_hidden_layers)
        for module in sorted(self.adapter.pairs):
            parameter = f"{module}.weight".replace("model.language_model.", "model.")
            name = names.get_name(parameter, try_suffixes=(".weight",))
            if name is None:
                raise StudioError(f"llama.cpp has no place for {parameter}.", WAY_OUT)
            if name == "output.weight" and self.merged.layout.tied:
                raise StudioError("This adapter changes an output head that is tied to the embeddings.", WAY_OUT)
            yield module, name
