"""Presets: TOML layers over a TrainConfig. Three families that own disjoint fields, so that order cannot matter."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_studio.core.config import RENAMED, TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.machine import Machine
from qlora_studio.core.plan import GIB
from qlora_studio.home import Home, bundled

OWNED: dict[str, frozenset[str]] = {
    "format": frozenset({"data.format", "data.columns", "data.train_on"}),
    "rank": frozenset({"lora.rank", "lora.alpha", "lora.dropout", "lora.use_rslora", "optim.learning_rate"}),
    "memory": frozenset(
        {
            "data.max_length",
            "memory.budget_gib",
            "memory.keep_free_gib",
            "memory.micro_batch_tokens",
            "memory.gradient_checkpointing",
            "memory.adapter_precision",
            "memory.offload",
            "optim.optimizer",
        }
    ),
}
"""The fields each family may set."""

FAMILIES: tuple[str, ...] = tuple(OWNED)


@dataclass(frozen=True, slots=True)
class Preset:
    """One preset file."""

    family: str
    name: str
    title: str
    description: str
    changes: dict[str, Any]
    """Dotted TrainConfig fields and their values, as the config reads them."""
    path: Path


def read_preset(path: Path, family: str) -> Preset:
    """A preset from its file. Raises a StudioError that names file and field."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StudioError(
            f"This preset is not valid TOML: {error}.", "Mend the file or delete it.", where=str(path)
        ) from None
    title, description = values.pop("title", path.stem), values.pop("says", "")
    changes: dict[str, Any] = {}
    for section, fields in values.items():
        if not isinstance(fields, dict):
            raise StudioError(
                "This belongs under a table such as [lora].", "Move it there.", where=str(path), field=section
            )
        for name, value in fields.items():
            dotted = RENAMED.get(f"{section}.{name}", f"{section}.{name}")
            if dotted not in OWNED[family]:
                raise StudioError(
                    f"A {family} preset cannot set this.",
                    f"It may set: {', '.join(sorted(OWNED[family]))}.",
                    where=str(path),
                    field=dotted,
                )
            changes[dotted] = value
    try:
        config = TrainConfig().replace(changes).model_dump(mode="json")
    except StudioError as error:
        raise StudioError(
            error.problems[0].message, error.hint, where=str(path), field=error.problems[0].field
        ) from None
    parsed = {dotted: config[dotted.partition(".")[0]][dotted.partition(".")[2]] for dotted in changes}
    return Preset(family, path.stem, str(title), str(description), parsed, path)


def list_presets(family: str, home: Home) -> list[Preset]:
    """All presets of a family by file name; one in `<home>/presets/<family>/` wins over a bundled one of its name."""
    files = {
        path.stem: path
        for folder in (bundled("presets"), home.presets)
        for path in sorted((folder / family).glob("*.toml"))
    }
    return [read_preset(files[name], family) for name in sorted(files, key=_natural)]


def find_preset(family: str, name: str, home: Home) -> Preset:
    """One preset by name. Raises a StudioError that lists the names there are."""
    presets = list_presets(family, home)
    for preset in presets:
        if preset.name == name:
            return preset
    raise StudioError(f"There is no {family} preset '{name}'.", f"There are: {', '.join(p.name for p in presets)}.")


def apply_presets(config: TrainConfig, presets: list[Preset]) -> TrainConfig:
    """The config with the fields of these presets changed."""
    return config.replace({dotted: value for preset in presets for dotted, value in preset.changes.items()})


def default_presets(machine: Machine, home: Home) -> dict[str, str]:
    """The preset of each family that suits a machine, for every face alike: `{"memory": "8gb", "rank": "balanced"}`.

    Of the memory presets the largest that the card holds; `cpu` without a card.
    """
    return {"memory": _fitting_memory(machine, home), "rank": "balanced"}


def default_config(machine: Machine, home: Home) -> TrainConfig:
    """What a run on this machine is set to before a person changes anything."""
    chosen = [find_preset(family, name, home) for family, name in default_presets(machine, home).items()]
    return apply_presets(TrainConfig(), chosen)


def _fitting_memory(machine: Machine, home: Home) -> str:
    if machine.card is None:
        return "cpu"
    held = machine.card.total_bytes / GIB + 0.5  # a 12 GB card reports a little less than 12 GiB
    sizes = {
        preset.name: float(preset.changes.get("memory.budget_gib", 0))
        for preset in list_presets("memory", home)
        if preset.name != "cpu"
    }
    fitting = [name for name, size in sizes.items() if 0 < size <= held]
    return max(fitting, key=lambda name: sizes[name], default=min(sizes, key=lambda name: sizes[name]))


def _natural(name: str) -> tuple[int, str]:
    """6gb before 10gb; names without a number keep the alphabet."""
    digits = "".join(character for character in name if character.isdigit())
    return (int(digits) if digits else 0, name)
