"""The adapter added into the base's weights, tensor by tensor, from files to files. No model is ever in memory.

Merging into the live 4-bit model would round the change away: the base sits on NF4's grid, and a change smaller than
half a step rounds back. So either the original 16-bit weights take the change (`original`), or the weights that were
trained against, the 4-bit round trip of the originals, take it (`as_chatted`), which is what the chat computed with.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import MergeInto
from qlora_studio.engine.safetensors_stream import DTYPES, Entry, SafetensorsFile, tensor_bytes, write_safetensors

INDEX = "model.safetensors.index.json"
COMPANIONS = (
    "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "LICENSE", "NOTICE",
)  # fmt: skip
LORA_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
UNKNOWN = (
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "use_dora",
    "use_qalora",
    "modules_to_save",
    "lora_bias",
)


class AdapterFile:
    """The plain LoRA adapter of a folder, addressed by the base weight each pair changes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        for key in UNKNOWN:
            if self.config.get(key):
                raise StudioError(
                    f"This adapter uses {key}, which cannot be merged tensor by tensor.",
                    "Merge it with peft.",
                    where=str(folder),
                )
        self.file = SafetensorsFile(folder / "adapter_model.safetensors")
        self.pairs: dict[str, dict[str, str]] = {}
        for key in self.file.header:
            match = LORA_KEY.fullmatch(key)
            if match is None:
                raise StudioError(
                    f"This adapter holds {key}, which is not a LoRA pair.",
                    "Merge it with peft.",
                    where=str(self.file.path),
                )
            self.pairs.setdefault(match["module"] + ".weight", {})[match["side"]] = key
        self.unused = set(self.pairs)

    def scale(self, module: str) -> float:
        """alpha / r, or alpha / sqrt(r) for rsLoRA, with per-module patterns matched as PEFT matches them."""
        rank = self._pattern("rank_pattern", module, self.config["r"])
        alpha = self._pattern("alpha_pattern", module, self.config["lora_alpha"])
        return float(alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank)

    def _pattern(self, key: str, module: str, default: float) -> float:
        for pattern, value in (self.config.get(key) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return float(value)
        return default

    @torch.no_grad()
    def merged(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """`W + scale·B·A` in fp32, for a base weight (out, in) of any dtype."""
        pair = self.pairs[name]
        self.unused.discard(name)
        a, b = self.file.read(pair["A"]).float(), self.file.read(pair["B"]).float()
        if weight.shape != (b.shape[0], a.shape[1]):
            raise StudioError(
                f"The adapter does not fit the base: {name} is {tuple(weight.shape)}.",
                "Choose the base it was trained on.",
                where=str(self.folder),
            )
        return weight.float().addmm_(b, a, alpha=self.scale(name.removesuffix(".weight")))


def nf4_round_trip(weight: torch.Tensor, compute: torch.dtype) -> torch.Tensor:
    """What the 4-bit layer computes with: quantised to NF4 with double quantisation and back, in its compute dtype."""
    packed, state = quantize_4bit(
        weight.to(compute).contiguous(), blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    return dequantize_4bit(packed, state)


def merge(
    base: Path,
    adapter: Path,
    out: Path,
    kind: MergeInto,
    compute: torch.dtype,
    advanced: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Writes the merged model into the empty folder `out`, in the base's own shards and dtypes, with its tokenizer.

    `advanced` hears bytes done and total. Raises a StudioError where any tensor of the adapter found no weight.
    """
    pairs = AdapterFile(adapter)
    index = base / INDEX
    names = (
        sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if index.exists()
        else ["model.safetensors"]
    )
    total, done = sum((base / name).stat().st_size for name in names), 0
    for name in names:
        shard = SafetensorsFile(base / name)
        entries = [_entry(shard, tensor, pairs, kind, compute) for tensor in shard.header]
        write_safetensors(out / name, entries, shard.metadata)
        shard.close()
        done += (base / name).stat().st_size
        advanced(done, total)
    if pairs.unused:
        raise StudioError(
            f"{len(pairs.unused)} weights of the adapter have no place in this base, first {min(pairs.unused)}.",
            "Choose the base it was trained on.",
            where=str(adapter),
        )
    pairs.file.close()
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config.pop("quantization_config", None)
    (out / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    if index.exists():
        shutil.copyfile(index, out / INDEX)
    for folder in (base, adapter):  # the adapter's own copy wins
        for name in COMPANIONS:
            if (folder / name).exists():
                shutil.copyfile(folder / name, out / name)


def _entry(shard: SafetensorsFile, name: str, pairs: AdapterFile, kind: MergeInto, compute: torch.dtype) -> Entry:
    """How one tensor of the merged model is written: copied, or computed when its turn comes."""
    if name not in pairs.pairs:
        return Entry(name, shard.dtype(name), shard.shape(name), partial(shard.copy, name))

    def write(out: IO[bytes]) -> None:
        weight = shard.read(name)
        if kind == "as_chatted":
            weight = nf4_round_trip(weight, compute)
        out.write(tensor_bytes(pairs.merged(name, weight).to(DTYPES[shard.dtype(name)])))

    return Entry(name, shard.dtype(name), shard.shape(name), write)
