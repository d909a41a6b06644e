"""The adapter added into the base's weights, tensor by tensor, from files to files. No model is ever in memory.

Merging into the live 4-bit model would round the change away: the base sits on NF4's grid, and a change smaller than
half a step rounds back. So either the original 16-bit weights take the change (`original`), or the weights that were
trained against, the 4-bit round trip of the originals, take it (`as_chatted`), which is what the chat computed with.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import MergeInto
from qlora_studio.engine.adapter_file import AdapterFile, RowRange, refuse_parameters
from qlora_studio.engine.four_bit_rows import FourBitRows, has_whole_rows
from qlora_studio.engine.model_layout import find_layout
from qlora_studio.engine.model_weights import ModelWeights, StoredTensor
from qlora_studio.engine.safetensors_stream import (
    DTYPES,
    PIECE_VALUES,
    Entry,
    round_fairly,
    tensor_bytes,
    write_safetensors,
)
from qlora_studio.weight_files import INDEX, WEIGHTS, find_plain_file, read_strict_json

Advanced = Callable[[int, int], None]
"""Hears bytes done and total; may raise to stop."""


@dataclass(frozen=True, slots=True)
class MergeRecipe:
    """What is merged into what."""

    base: Path
    adapter: Path
    into: MergeInto
    compute: torch.dtype
    """The chat's: its 4-bit layers dequantise to it."""


@dataclass(frozen=True, slots=True)
class MergedTensor:
    """One tensor of the merged model."""

    name: str
    """As the base's files name it."""
    parameter: str
    """As the loaded model names it."""
    dtype: str
    shape: tuple[int, ...]
    source: StoredTensor
    changed: bool
    """Whether it is computed; else its bytes are the base's."""


class MergedWeights:
    """The merged model as a list of tensors, each computed when it is asked for. Close it after use."""

    def __init__(self, recipe: MergeRecipe) -> None:
        """Raises a StudioError where an adapter cannot be merged into this base, before anything is computed."""
        self.recipe = recipe
        self.base = ModelWeights(recipe.base)
        self.adapter = AdapterFile(recipe.adapter)
        if self.base.quantised and recipe.into == "original":
            raise StudioError(
                "This base exists only in 4 bits, so there are no original weights to merge into.",
                "Export it as chatted.",
                where=str(recipe.base),
            )
        self.layout = find_layout(recipe.base, self.base.tensors)
        self.tensors = [self._plan(stored) for stored in self.base.tensors.values()]
        self._untie()
        self._check_places()
        self.config = self._make_config()

    def close(self) -> None:
        self.base.close()
        self.adapter.close()

    @property
    def bytes(self) -> int:
        """Of all tensors together."""
        return sum(self.entry(tensor).bytes for tensor in self.tensors)

    def pieces(self, tensor: MergedTensor, multiple: int = 1) -> Iterator[torch.Tensor]:
        """A tensor of the merged model in pieces of whole rows, each a multiple of `multiple` rows but for the last.

        fp32 where something was added, else as it is stored. What cannot be computed by rows comes in one piece.
        """
        if len(tensor.shape) != 2 or tensor.parameter in self.layout.transposed:
            yield self._read(tensor)
            return
        for rows, weight in self.before(tensor, multiple):
            yield self.adapter.apply(tensor.parameter, weight, rows=rows) if tensor.changed else weight

    def before(self, tensor: MergedTensor, multiple: int = 1) -> Iterator[tuple[RowRange, torch.Tensor]]:
        """The matrix that takes the adapter, in the same pieces: the base's, or what the chat computes with."""
        rows, columns = tensor.shape
        step = max(1, PIECE_VALUES // columns // multiple) * multiple if self._goes_by_rows(tensor) else rows
        ranges = [RowRange(first, min(rows, first + step), rows) for first in range(0, rows, step)]
        read = self._reader(tensor, ranges)
        for one in ranges:
            yield one, read(one)

    def _reader(self, tensor: MergedTensor, ranges: list[RowRange]) -> Callable[[RowRange], torch.Tensor]:
        """How rows of the weight that takes the adapter are read."""
        name = tensor.source.name
        if tensor.parameter in self.adapter.whole:  # the base's may have another shape
            return lambda rows: torch.empty(0)
        if tensor.source.four_bit:
            stored = self.base.four_bit_rows(name)
            return lambda rows: stored.rows(rows.first, rows.after)
        if self._rounds(tensor):
            originals = (self.base.read_rows(name, one.first, one.after) for one in ranges)
            rounded = FourBitRows.quantise(originals, self.recipe.compute)
            return lambda rows: rounded.rows(rows.first, rows.after)
        return lambda rows: self.base.read_rows(name, rows.first, rows.after)

    def _goes_by_rows(self, tensor: MergedTensor) -> bool:
        """Whether the rows of a matrix can be computed apart."""
        if tensor.source.four_bit:
            return has_whole_rows(tensor.shape[1], self.base.block(tensor.source.name))
        return not self._rounds(tensor) or has_whole_rows(tensor.shape[1])

    def _read(self, tensor: MergedTensor) -> torch.Tensor:
        """A whole tensor: one that is no matrix, or that is stored the other way round, as GPT-2's are."""
        weight, transposed = self.base.read(tensor.source.name), tensor.parameter in self.layout.transposed
        if self._rounds(tensor):  # the loader turns GPT-2's layers round before it quantises them
            weight = nf4_round_trip(weight.T, self.recipe.compute).T
        return self.adapter.apply(tensor.parameter, weight, transposed=transposed)

    def entry(self, tensor: MergedTensor) -> Entry:
        """How it is written: copied, or computed when its turn comes."""
        if not tensor.changed:
            return Entry(tensor.name, tensor.dtype, tensor.shape, partial(self.base.copy, tensor.source.name))

        def write(out: IO[bytes]) -> None:
            chance = torch.Generator().manual_seed(zlib.crc32(tensor.name.encode()))
            for rows in self.pieces(tensor):
                for piece in round_fairly(rows, DTYPES[tensor.dtype], chance):
                    out.write(tensor_bytes(piece))

        return Entry(tensor.name, tensor.dtype, tensor.shape, write)

    def check_used(self) -> None:
        """Raises a StudioError where any tensor of the adapter was never read: a part of it would be missing."""
        if self.adapter.unused:
            raise _no_place(self.adapter.unused, self.recipe.adapter)

    def _plan(self, stored: StoredTensor) -> MergedTensor:
        parameter = self.layout.parameters[stored.name]
        touched = self.adapter.touches(parameter) and stored.name not in self.layout.joined
        rounded = self.recipe.into == "as_chatted" and parameter in self.layout.quantised
        shape = self.adapter.shape(parameter, stored.shape) if touched else stored.shape
        return MergedTensor(stored.name, parameter, stored.dtype, shape, stored, touched or rounded or stored.four_bit)

    def _rounds(self, tensor: MergedTensor) -> bool:
        """Whether the chat computed with this weight's 4-bit round trip; one stored in 4 bits has been through it."""
        chatted = self.recipe.into == "as_chatted" and not tensor.source.four_bit
        return chatted and tensor.parameter in self.layout.quantised

    def _untie(self) -> None:
        """Where only one of two tied weights is changed, or both otherwise, they are written apart."""
        layout, adapter = self.layout, self.adapter
        self.tied = layout.tied
        if not layout.tied or (not adapter.touches(layout.head) and not adapter.touches(layout.embedding)):
            return
        if adapter.brings_the_same(layout.head, layout.embedding):
            adapter.forget(layout.head)  # peft saves both of the pair
            return
        if layout.embedding in adapter.tokens and not adapter.touches(layout.head):
            return  # peft gives single tokens to a tied head as well
        self.tied = False
        source = next(tensor for tensor in self.tensors if tensor.parameter == layout.embedding)
        self.tensors = [tensor for tensor in self.tensors if tensor.parameter != layout.head]
        shape = adapter.shape(layout.head, source.source.shape)
        changed = adapter.touches(layout.head)
        self.tensors.append(MergedTensor(layout.head, layout.head, source.dtype, shape, source.source, changed))

    def _check_places(self) -> None:
        """Raises a StudioError where the adapter changes a parameter that the files do not hold as one tensor."""
        there = {tensor.parameter for tensor in self.tensors if tensor.name not in self.layout.joined}
        adapter = self.adapter
        wanted = {f"{module}.weight" for module in adapter.pairs} | set(adapter.whole) | set(adapter.tokens)
        wanted |= {f"{module}.bias" for module, pair in adapter.pairs.items() if "B bias" in pair.names}
        missing = sorted(wanted - there)
        if any(".experts" in name and name not in self.layout.shapes for name in missing):
            raise refuse_parameters(adapter.config, self.recipe.adapter)
        if missing and missing[0].endswith(".bias") and missing[0] not in self.layout.shapes:
            raise StudioError(
                f"This adapter uses lora_bias, and the base has no {missing[0]} that could take it.",
                "Merge it with peft, or export the adapter alone.",
                where=str(self.recipe.adapter),
            )
        if missing:
            raise _no_place(missing, self.recipe.adapter)
        for tensor in self.tensors:
            adapter.check_fits(
                tensor.parameter, tensor.source.shape, transposed=tensor.parameter in self.layout.transposed
            )

    def _make_config(self) -> dict[str, Any]:
        """The base's config.json as the merged model needs it."""
        config = read_strict_json(find_plain_file(self.recipe.base, "config.json"))
        config.pop("quantization_config", None)
        config.pop("transformers_weights", None)
        rows = next(tensor.shape[0] for tensor in self.tensors if tensor.parameter == self.layout.embedding)
        places = [config, *(value for value in config.values() if isinstance(value, dict))]
        for place in places:
            if "vocab_size" in place and place["vocab_size"] != rows:
                place["vocab_size"] = rows
        if self.layout.tied and not self.tied:
            config["tie_word_embeddings"] = False
            for place in places:
                if "tie_word_embeddings" in place:
                    place["tie_word_embeddings"] = False
        return config


def _no_place(names: list[str], adapter: Path) -> StudioError:
    return StudioError(
        f"{len(names)} weights of the adapter have no place in this base, first {names[0]}.",
        "Choose the base it was trained on; experts in files of their own cannot be merged.",
        where=str(adapter),
    )


def nf4_round_trip(weight: torch.Tensor, compute: torch.dtype) -> torch.Tensor:
    """What a 4-bit layer (out, in) computes with: to NF4 with double quantisation and back, in its compute dtype."""
    packed, state = quantize_4bit(
        weight.to(compute).contiguous(), blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    return dequantize_4bit(packed, state)


def write_merged(merged: MergedWeights, out: Path, advanced: Advanced = lambda done, total: None) -> None:
    """Writes the merged weights and their config.json into the folder `out`, in the base's shards and dtypes.

    `advanced` hears bytes done and total. Raises a StudioError where any tensor of the adapter found no weight.
    """
    files = merged.base.files.names
    total, done, places = merged.bytes, 0, {}
    for number, file in enumerate(files, 1):
        name = WEIGHTS if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        entries = [merged.entry(tensor) for tensor in merged.tensors if tensor.source.file == file]
        for entry in entries:
            places[entry.name] = name

        def step(bytes: int, before: int = done) -> None:
            advanced(before + bytes, total)

        write_safetensors(out / name, entries, merged.base.metadata, step)
        done += sum(entry.bytes for entry in entries)
    merged.check_used()
    (out / "config.json").write_text(json.dumps(merged.config, indent=2), encoding="utf-8")
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (out / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
