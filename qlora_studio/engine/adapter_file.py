"""A PEFT adapter as files: what it does to each parameter of the base, tensor by tensor.

Plain LoRA with every scale, DoRA, whole modules saved beside it, single tokens' embeddings, and factors over the experts
of one joined parameter. Anything else that PEFT can do is refused by name: a merge that left a part out would be silent.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from qlora_studio.core.errors import StudioError
from qlora_studio.engine.safetensors_stream import SafetensorsFile
from qlora_studio.weight_files import find_plain_file, read_strict_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<kind>A|B|embedding_A|embedding_B|magnitude_vector)(?:\.(?P<leaf>weight|bias))?"
)
TOKENS = ".token_adapter.trainable_tokens_delta"
UNDERSTOOD = frozenset({
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha",
    "lora_bias", "lora_dropout", "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size",
    "r", "rank_pattern", "revision", "runtime_config", "target_modules", "target_parameters", "task_type",
    "trainable_token_indices", "use_dora", "use_rslora", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "megatron_config", "save_embedding_layers",
})  # fmt: skip
"""Settings of PEFT's LoraConfig whose meaning is in the tensors, is followed here, or ends with the training."""
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""First values of an adapter that PEFT takes out of the base's own weights."""


@dataclass(slots=True)
class LoraPair:
    """The tensors of one adapted layer, by their names in the adapter's file."""

    names: dict[str, str] = field(default_factory=dict)
    """By kind: `A`, `B`, `embedding_A`, `embedding_B`, `magnitude_vector`, `A bias`, `B bias`."""


@dataclass(frozen=True, slots=True)
class RowRange:
    """Some rows of a parameter."""

    first: int
    after: int
    of: int
    """How many rows the whole parameter has."""


class AdapterFile:
    """The adapter of a folder. Raises a StudioError where it does something that is not understood here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_adapter_config(folder)
        self.file = SafetensorsFile(find_plain_file(folder, WEIGHTS))
        self.pairs: dict[str, LoraPair] = {}
        self.whole: dict[str, str] = {}
        """Parameters that the adapter brings whole, and the tensor that is theirs."""
        self.tokens: dict[str, str] = {}
        self._left: set[str] = set(self.file.header)
        for key in self.file.header:
            self._sort_in(key, key.removeprefix(PREFIX))

    def close(self) -> None:
        self.file.close()

    @property
    def unused(self) -> list[str]:
        """Tensors that no parameter has taken yet."""
        return sorted(self._left)

    def touches(self, parameter: str) -> bool:
        """Whether the adapter changes this parameter of the loaded model."""
        module, _, leaf = parameter.rpartition(".")
        pair = self.pairs.get(module)
        if parameter in self.whole or parameter in self.tokens:
            return True
        return pair is not None and (leaf == "weight" or (leaf == "bias" and "B bias" in pair.names))

    def brings_the_same(self, one: str, other: str) -> bool:
        """Whether it brings both parameters whole, and they are equal."""
        if one not in self.whole or other not in self.whole:
            return False
        return torch.equal(self.file.read(self.whole[one]), self.file.read(self.whole[other]))

    def forget(self, parameter: str) -> None:
        """Leaves out what the adapter brings for a parameter that is another one's twin."""
        self._left.discard(self.whole.pop(parameter))

    def factors(self, module: str) -> tuple[torch.Tensor, torch.Tensor, float]:
        """A (rank, in), B (out, rank) and the scale of a plainly adapted layer, in fp32."""
        names = self.pairs[module].names
        return self._take(names["A"]).float(), self._take(names["B"]).float(), self.scale(module)

    def scale(self, module: str) -> float:
        """alpha / r, or alpha / sqrt(r) for rsLoRA, with per-module patterns matched as PEFT matches them."""
        rank = self._pattern("rank_pattern", module, self.config["r"])
        alpha = self._pattern("alpha_pattern", module, self.config["lora_alpha"])
        return float(alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank)

    def shape(self, parameter: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the merged parameter: another where the adapter brings it whole and resized."""
        return self.file.shape(self.whole[parameter]) if parameter in self.whole else shape

    def check_fits(self, parameter: str, shape: tuple[int, ...], *, transposed: bool) -> None:
        """Raises a StudioError where the factors of a layer are not those of a weight of this shape, (out, in)."""
        pair = self.pairs.get(parameter.removesuffix(".weight"))
        if pair is None or not parameter.endswith(".weight") or parameter in self.whole:
            return
        embedding = "embedding_A" in pair.names
        left, right = (pair.names.get(f"embedding_{side}" if embedding else side, "") for side in "BA")
        if not left or not right:
            raise StudioError(f"Of the adapter's factors for {parameter} one is missing.", where=str(self.folder))
        made_for = (self.file.shape(left)[0], self.file.shape(right)[-1])
        if embedding or transposed:
            made_for = (made_for[1], made_for[0])
        if made_for != shape:
            raise StudioError(
                f"The adapter does not fit the base: {parameter} is {shape}, and the adapter was made for {made_for}.",
                "Choose the base it was trained on.",
                where=str(self.folder),
            )

    @torch.no_grad()
    def apply(
        self, parameter: str, weight: torch.Tensor, *, transposed: bool = False, rows: RowRange | None = None
    ) -> torch.Tensor:
        """The merged parameter: fp32 where something was added, the stored dtype where it was only replaced.

        `weight` is the base's, (out, in), or (in, out) where `transposed`, of any dtype; it is not changed. With `rows`
        it holds these rows alone, and so does the result; not where `transposed`, since DoRA measures columns.
        """
        module, _, leaf = parameter.rpartition(".")
        cut = slice(rows.first, rows.after) if rows else slice(None)
        if parameter in self.whole:
            weight = self._take_rows(self.whole[parameter], rows)
        if parameter in self.tokens:
            return self._with_tokens(parameter, weight, rows)
        pair = self.pairs.get(module)
        if pair is None or leaf not in ("weight", "bias") or (leaf == "bias" and "B bias" not in pair.names):
            return weight
        if leaf == "bias":
            return weight.float() + self.scale(module) * self._take(pair.names["B bias"]).float()[cut]
        if "embedding_A" in pair.names:
            a, b = self._take(pair.names["embedding_A"]).float(), self._take(pair.names["embedding_B"]).float()
            return _add(weight, a.T[cut], b.T, self.scale(module))
        a, b, scale = self.factors(module)
        merged = _add(weight, a.T, b.T, scale) if transposed else _add(weight, b[cut], a, scale)
        if "magnitude_vector" in pair.names:  # DoRA: every output's direction is learned apart from its length
            inputs = 0 if transposed else 1
            length = self._take(pair.names["magnitude_vector"]).float()[cut] / merged.norm(dim=inputs)
            merged.mul_(length.unsqueeze(inputs))
        return merged

    def _with_tokens(self, parameter: str, weight: torch.Tensor, rows: RowRange | None) -> torch.Tensor:
        """The embeddings of single tokens in their places; `trainable_token_indices` says which."""
        module, token_ids = parameter.removesuffix(".weight"), self.config["trainable_token_indices"]
        if isinstance(token_ids, dict):
            token_ids = next((ids for name, ids in token_ids.items() if re.match(rf"(.*\.)?({name})$", module)), [])
        values, rows = self._take(self.tokens[parameter]), rows or RowRange(0, len(weight), len(weight))
        if len(token_ids) != len(values) or not all(type(one) is int and 0 <= one < rows.of for one in token_ids):
            raise StudioError("The adapter's token embeddings do not fit the base.", where=str(self.folder))
        merged = weight.clone()
        for token, value in zip(token_ids, values, strict=True):
            if rows.first <= token < rows.after:
                merged[token - rows.first] = value.to(weight.dtype)
        return merged

    def _pattern(self, key: str, module: str, default: float) -> float:
        for pattern, value in (self.config.get(key) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return float(value)
        return default

    def _take(self, key: str) -> torch.Tensor:
        self._left.discard(key)
        return self.file.read(key)

    def _take_rows(self, key: str, rows: RowRange | None) -> torch.Tensor:
        self._left.discard(key)
        return self.file.read_rows(key, rows.first, rows.after) if rows else self.file.read(key)

    def _sort_in(self, key: str, name: str) -> None:
        """Puts one tensor of the file where it belongs."""
        if match := FACTOR.fullmatch(name):
            kind = f"{match['kind']} bias" if match["leaf"] == "bias" else match["kind"]
            self.pairs.setdefault(match["module"], LoraPair()).names[kind] = key
        elif name.endswith(TOKENS):
            self.tokens[name.removesuffix(TOKENS) + ".weight"] = key
        elif ".original_module." in name:
            self._left.discard(key)  # the base's own values, which peft saves along
        elif ".modules_to_save." in name:
            self._bring(name.replace(".modules_to_save.", "."), key)
        else:
            parameter = name.replace(".base_layer.", ".")
            if parameter in self.whole:
                self._left.discard(key)
            else:
                self.whole[parameter] = key

    def _bring(self, parameter: str, key: str) -> None:
        """The trained copy of a saved module, which wins over a plain one of the same name."""
        if parameter in self.whole:
            self._left.discard(self.whole[parameter])
        self.whole[parameter] = key


def _add(weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor, scale: float) -> torch.Tensor:
    """`weight + scale·left·right` in fp32, with no second matrix of that size."""
    whole = weight.clone() if weight.dtype is torch.float32 else weight.float()
    return whole.addmm_(left, right, alpha=scale)


def refuse_parameters(config: Mapping[str, Any], folder: Path) -> StudioError:
    """Why factors on something else than a layer's weight cannot be merged."""
    named = ", ".join(config.get("target_parameters") or ["experts"])
    return StudioError(
        f"This adapter has factors on joined experts (target_parameters: {named}), which cannot be merged tensor by tensor.",
        "Merge it with peft, or export the adapter alone.",
        where=str(folder),
    )


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """`adapter_config.json`, refused by name where it asks for something that is not understood here."""
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise StudioError(
            "There is no adapter in this folder.",
            f"It needs {CONFIG} and {WEIGHTS}; choose a run that has saved one.",
            where=str(folder),
        )
    config = read_strict_json(find_plain_file(folder, CONFIG))
    problem = _find_foreign(config)
    if problem:
        raise StudioError(
            f"This adapter {problem}, which cannot be merged tensor by tensor.",
            "Merge it with peft, or export the adapter alone.",
            where=str(folder),
        )
    return config


def _find_foreign(config: Mapping[str, Any]) -> str:
    """What of an adapter's settings is not understood here; empty where all is."""
    if config.get("peft_type") != "LORA":
        return f"is of the kind {str(config.get('peft_type'))[:50]}"
    if foreign := sorted(key for key, value in config.items() if value and key not in UNDERSTOOD):
        return f"uses {foreign[0][:50]}"
    first = config.get("init_lora_weights")
    if isinstance(first, str) and first.startswith(CHANGES_BASE):
        return f"was begun from the base's own weights (init_lora_weights: {first[:50]})"
    if not isinstance(config.get("r"), int) or not isinstance(config.get("lora_alpha"), int | float) or config["r"] < 1:
        return "names no rank or alpha"
    return ""
