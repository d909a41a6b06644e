"""A GGUF file from merged weights, one tensor in memory at a time and no file in between."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type

from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import GgufType
from qlora_studio.engine.gguf_file.blocks import encode
from qlora_studio.engine.gguf_file.families import Family, find_family, rope_tensors, write_configuration
from qlora_studio.engine.gguf_file.mixture import FILES, Mixture, bytes_of
from qlora_studio.engine.gguf_file.vocabulary import write_vocabulary
from qlora_studio.engine.load import read_text_config
from qlora_studio.engine.manifest import sync
from qlora_studio.engine.merge import MergedTensor, MergedWeights
from qlora_studio.engine.tokenizer import ChatTokenizer

ALIGNMENT = 32
"""Bytes, the format's default."""
ROTATED = re.compile(r"\.attn_(q|k)\.(weight|bias)$")
BESIDE_TEXT = ("model.vision_tower.", "model.multi_modal_projector.")
"""Parts of a model for pictures; the text model is written without them."""


@dataclass(frozen=True, slots=True)
class About:
    """What the file says of itself. Names only, never a path."""

    name: str
    base: str = ""
    """Hub id or name."""
    licence: str = ""


@dataclass(frozen=True, slots=True)
class Precision:
    """How the file's numbers are kept."""

    kind: GgufType
    importance: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """How much each column of a parameter counts (columns,); nothing for those whose columns count alike."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One tensor of the file."""

    name: str
    kind: Type
    shape: tuple[int, ...]
    source: MergedTensor | torch.Tensor

    @property
    def bytes(self) -> int:
        return bytes_of(self.shape, self.kind)


class GgufFile:
    """A file that is planned whole before a byte is written, so that its size is known and nothing is found out late."""

    def __init__(self, merged: MergedWeights, tokenizer: ChatTokenizer, precision: Precision, about: About) -> None:
        """Raises a StudioError for an architecture or tokenizer that is not known."""
        self.merged, self.kind, self.importance = merged, precision.kind, precision.importance
        self.config: Any = read_text_config(merged.recipe.base).get_text_config()
        self.family: Family = find_family(self.config.model_type)
        self.arch = gguf.MODEL_ARCH[self.family.arch]
        self.tensors = [*self._plan_weights(), *self._plan_ropes()]
        self.writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[self.arch])
        self._describe(tokenizer, about)

    @property
    def bytes(self) -> int:
        """Of all tensors, without the header."""
        return sum(tensor.bytes for tensor in self.tensors)

    def write(self, path: Path, advanced: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Writes the file; `advanced` is called with bytes done and total. A file that is not whole never has this name."""
        part = path.with_name(path.name + ".part")
        for tensor in self.tensors:
            shape = tensor.shape
            if tensor.kind not in (Type.F32, Type.F16):
                shape = gguf.quant_shape_to_byte_shape(shape, tensor.kind)
            number = {Type.F32: np.float32, Type.F16: np.float16}.get(tensor.kind, np.uint8)
            self.writer.add_tensor_info(tensor.name, shape, np.dtype(number), tensor.bytes, raw_dtype=tensor.kind)
        self.writer.write_header_to_file(part)
        self.writer.write_kv_data_to_file()
        self.writer.write_ti_data_to_file()
        self.writer.close()
        done = 0
        with part.open("ab") as out:
            _pad(out)
            for tensor in self.tensors:
                before = out.tell()
                for rows in self._rows(tensor):
                    out.write(np.ascontiguousarray(self.encode(tensor, rows)).data)
                    advanced(done + out.tell() - before, self.bytes)
                if out.tell() - before != tensor.bytes:
                    raise StudioError(f"{tensor.name} has another size than planned.", "Report this: it is a fault.")
                done += tensor.bytes
                _pad(out)
        self.merged.check_used()
        sync(part)
        part.replace(path)

    def encode(self, tensor: Planned, rows: torch.Tensor) -> np.ndarray:
        """Rows of this tensor, laid out as llama.cpp has them, as the file's bytes."""
        source = tensor.source
        columns = self.importance.get(source.parameter) if isinstance(source, MergedTensor) else None
        return encode(rows, tensor.kind, columns)

    def _plan_weights(self) -> Iterator[Planned]:
        names = gguf.get_tensor_name_map(self.arch, self.config.num_hidden_layers)
        mixture = Mixture(self.kind, self.config.num_hidden_layers, self.merged.tied)
        for tensor in self.merged.tensors:
            if tensor.parameter.startswith(BESIDE_TEXT):
                continue
            parameter = tensor.parameter.replace("model.language_model.", "model.")
            if parameter == self.merged.layout.head and self.merged.tied:
                continue
            name = names.get_name(parameter, try_suffixes=(".weight", ".bias"))
            if name is None:
                raise StudioError(f"llama.cpp has no place for {parameter}.", "Export the merged model instead.")
            yield Planned(name, mixture.choose(name, tensor.shape), tensor.shape, tensor)

    def _plan_ropes(self) -> Iterator[Planned]:
        for name, factors in rope_tensors(self.config):
            yield Planned(name, Type.F32, tuple(factors.shape), factors)

    def _describe(self, tokenizer: ChatTokenizer, about: About) -> None:
        writer = self.writer
        describe(writer, "model", about)
        write_configuration(writer, self.config, self.family)
        writer.add_file_type(FILES[self.kind][0])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        if self.importance:
            writer.add_uint32("quantize.imatrix.entries_count", len(self.importance))
        (embedding,) = [one for one in self.tensors if one.name == "token_embd.weight"]
        writer.add_vocab_size(embedding.shape[0])
        write_vocabulary(writer, tokenizer, embedding.shape[0])

    def _rows(self, tensor: Planned) -> Iterator[torch.Tensor]:
        """The tensor as llama.cpp lays it out, in pieces of whole rows."""
        source = tensor.source
        if isinstance(source, torch.Tensor):
            yield source
            return
        for weight in self.merged.pieces(source, self.head_rows(tensor)):
            yield self.lay_out(tensor, weight)

    def head_rows(self, tensor: Planned) -> int:
        """How many rows are laid out together: those of a head where llama.cpp pairs them, else each is for itself."""
        rotated = self.family.interleaved and ROTATED.search(tensor.name)
        if not rotated:
            return 1
        queries = rotated[1] == "q"
        return int(tensor.shape[0] // (self.config.num_attention_heads if queries else self.config.num_key_value_heads))

    def lay_out(self, tensor: Planned, weight: torch.Tensor) -> torch.Tensor:
        """Rows of the loaded model's weight, whole heads of them, as llama.cpp has them."""
        together = self.head_rows(tensor)
        if together > 1:
            return interleave(weight, weight.shape[0] // together)
        raised = self.family.raised_norms and tensor.name.endswith("norm.weight")
        return weight.float() + 1 if raised else weight


def describe(writer: gguf.GGUFWriter, kind: str, about: About) -> None:
    """What a file of this kind, `model` or `adapter`, says of itself."""
    writer.add_type(kind)
    writer.add_name(about.name)
    if about.licence:
        writer.add_license(about.licence)
    if about.base:
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, about.base.rpartition("/")[2])
        if "/" in about.base:
            writer.add_base_model_organization(0, about.base.partition("/")[0])
            writer.add_base_model_repo_url(0, f"https://huggingface.co/{about.base}")


def interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head from two halves to pairs: (heads·2·n, …), row 2i is the first half's i, 2i+1 the second's."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _pad(out: IO[bytes]) -> None:
    out.write(b"\0" * (-out.tell() % ALIGNMENT))
