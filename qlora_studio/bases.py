"""Base models on disk: which folder a name means, and whether it holds what the studio can use. No network."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_studio.core.config import DEMO_BASE
from qlora_studio.core.errors import StudioError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True, slots=True)
class Base:
    """A base model by name, and its folder once it is on disk."""

    name: str
    folder: Path | None
    """None where it must be fetched first: the demo model or a hub id."""


def find_base(name: str, models: Path) -> Base:
    """What a name means: a local folder (checked), a model under `models`, the demo model or a hub id.

    Raises a StudioError for a folder that is missing or has no safetensors weights, and for a name that is neither.
    """
    kept = models / folder_name(name)
    if kept.is_dir() and (kept / "config.json").exists():
        check_folder(kept)
        return Base(name, kept)
    if name == DEMO_BASE:
        return Base(name, None)
    path = Path(name).expanduser()
    if path.is_dir():
        check_folder(path)
        return Base(name, path.resolve())
    if path.is_absolute() or name.startswith((".", "~")) or path.exists() or not HUB_ID.fullmatch(name):
        raise StudioError(
            f"There is no model folder '{name}'.",
            f"Give a folder with config.json and safetensors weights, a hub id such as org/name, or '{DEMO_BASE}'.",
        )
    return Base(name, None)


def folder_name(name: str) -> str:
    """The folder under `models` that keeps a fetched base: `org/name` becomes `org--name`."""
    return name.replace("/", "--") if HUB_ID.fullmatch(name) else re.sub(r"[^\w.-]", "-", name) or "-"


def check_folder(folder: Path) -> None:
    """Raises a StudioError unless the folder holds a config.json and safetensors weights."""
    if not (folder / "config.json").is_file():
        raise StudioError("This folder holds no config.json.", "Choose the folder of a model.", where=str(folder))
    read_model_config(folder)
    if any(folder.glob("*.safetensors")):
        return
    if any(path for pattern in PICKLES for path in folder.glob(pattern)):
        raise StudioError(
            "This model has pickle weights only, and opening them could run foreign code.",
            "Get its safetensors version, or convert it on a machine you do not mind losing.",
            where=str(folder),
        )
    raise StudioError("This folder holds no safetensors weights.", "Download the model again.", where=str(folder))


def read_model_config(folder: Path) -> dict[str, Any]:
    """`config.json`, refused where it would make a library fetch or run foreign code."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StudioError(
            f"The model's config.json cannot be read: {error}.", "Download the model again.", where=str(path)
        ) from None
    if not isinstance(values, dict):
        raise StudioError("The model's config.json is not an object.", "Download the model again.", where=str(path))
    for key in _keys(values):
        if key.endswith(("_implementation", "_implementation_internal")):
            raise StudioError(
                "The model's config.json asks for foreign code.",
                "Remove this key if you trust the model.",
                where=str(path),
                field=key,
            )
    if "auto_map" in values and not values.get("model_type"):
        raise StudioError(
            "This model needs code of its own, which the studio never runs.",
            "Choose a model that transformers knows.",
            where=str(path),
            field="auto_map",
        )
    return values


def _keys(values: dict[str, Any]) -> list[str]:
    """All keys of an object and of the objects in it."""
    found = []
    for key, value in values.items():
        found.append(key)
        if isinstance(value, dict):
            found += _keys(value)
    return found
