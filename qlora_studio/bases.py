"""Base models on disk: which folder a name means, and whether it holds what the studio can use. No network."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_studio.core.config import DEMO_BASE
from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.core.words import without_quotes
from qlora_studio.weight_files import find_weight_files

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
MOST_CONFIG_BYTES = 4 << 20
"""A `config.json` larger than this is something else: real ones have a few kilobytes."""
MOST_HEADER_BYTES = 100 << 20
"""The format's own limit."""


@dataclass(frozen=True, slots=True)
class Base:
    """A base model by name, and its folder once it is on disk."""

    name: str
    folder: Path | None
    """None where it must be fetched first: the demo model or a hub id."""


@dataclass(frozen=True, slots=True)
class BaseFiles:
    """What the files of a base say besides its configuration."""

    weights_bytes: int | None
    """Of the safetensors files that are loaded; None where that cannot be told."""
    commit: str | None
    """The hub's commit it was downloaded at, where it was."""
    licence: str
    """As its model card names it; empty where it does not."""
    has_template: bool


def locate_base(name: str, models: Path) -> Base:
    """What a name means: a folder with a config.json, a model under `models`, the demo model or a hub id.

    Weights need not be there: a plan does without. Raises a StudioError for a name that is none of these.
    """
    name = without_quotes(name)
    kept = models / folder_name(name)
    if kept.is_dir() and (kept / "config.json").exists():
        return Base(name, kept)
    if name == DEMO_BASE:
        return Base(name, None)
    path = Path(name).expanduser()
    if path.is_dir():
        return Base(name, path.resolve())
    if path.is_absolute() or name.startswith((".", "~")) or path.exists() or not HUB_ID.fullmatch(name):
        raise StudioError(
            f"There is no model folder '{name}'.",
            f"Give a folder with config.json and safetensors weights, a hub id such as org/name, or '{DEMO_BASE}'.",
        )
    return Base(name, None)


def find_base(name: str, models: Path) -> Base:
    """What a name means, as `locate_base` says; a folder is checked for weights that may be loaded.

    Raises a StudioError for a folder that has none.
    """
    base = locate_base(name, models)
    if base.folder is not None:
        check_folder(base.folder)
    return base


def folder_name(name: str) -> str:
    """The folder under `models` that keeps a fetched base: `org/name` becomes `org--name`."""
    return name.replace("/", "--") if HUB_ID.fullmatch(name) else re.sub(r"[^\w.-]", "-", name) or "-"


def check_folder(folder: Path) -> None:
    """Raises a StudioError unless the folder holds a config.json and safetensors weights."""
    read_model_config(folder)
    if (problem := find_weights_problem(folder)) is not None:
        raise StudioError.of([problem])


def find_weights_problem(folder: Path) -> Problem | None:
    """Why the weights of a folder cannot be loaded; None where they can, as far as names and places tell."""
    if any(folder.glob("*.safetensors")):
        try:
            find_weight_files(folder)
        except StudioError as error:
            return error.problems[0]
        return None
    if any(path for pattern in PICKLES for path in folder.glob(pattern)):
        return Problem(
            "This model has pickle weights only, and opening them could run foreign code.",
            "Get its safetensors version, or convert it on a machine you do not mind losing.",
            str(folder),
        )
    return Problem("This folder holds no safetensors weights.", "Download the model again.", str(folder))


def read_base_files(folder: Path) -> BaseFiles:
    """What a base's files say besides its configuration. What cannot be read stays empty."""
    weights = None if find_weights_problem(folder) else find_weight_files(folder).bytes
    tokenizer = _read_object(folder / "tokenizer_config.json")
    return BaseFiles(
        weights_bytes=weights,
        commit=_text(_read_object(folder / "source.json").get("commit")) or None,
        licence=_read_licence(folder / "README.md"),
        has_template=(folder / "chat_template.jinja").is_file() or bool(tokenizer.get("chat_template")),
    )


def read_tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors in the safetensors files that are loaded, by name, from their headers alone.

    The format: eight bytes with the length of a JSON header, then the header (huggingface/safetensors, README). A file
    that cannot be read says nothing.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    if find_weights_problem(folder) is not None:
        return shapes
    for path in find_weight_files(folder).paths:
        for name, entry in _read_header(path).items():
            shape = entry.get("shape") if isinstance(entry, dict) else None
            if name != "__metadata__" and isinstance(shape, list):
                shapes[name] = tuple(int(size) for size in shape)
    return shapes


def _read_header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            values = json.loads(file.read(length)) if 0 < length <= MOST_HEADER_BYTES else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def read_model_config(folder: Path) -> dict[str, Any]:
    """`config.json`, refused where it would make a library fetch or run foreign code."""
    path = folder / "config.json"
    if not path.is_file():
        raise StudioError(
            "This folder holds no config.json.",
            "Choose the folder of a model in transformers format.",
            where=str(folder),
        )
    try:
        if path.stat().st_size > MOST_CONFIG_BYTES:
            raise ValueError(f"it has {path.stat().st_size} bytes, and none has so many")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
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


def _keys(values: Mapping[str, Any]) -> list[str]:
    """All keys of an object and of the objects in it."""
    found = []
    for key, value in values.items():
        found.append(key)
        if isinstance(value, dict):
            found += _keys(value)
    return found


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is none or where it cannot be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _read_licence(card: Path) -> str:
    """The licence that a model card names between its first two lines of dashes."""
    try:
        head = card.read_text(encoding="utf-8", errors="replace")[:20_000]
    except OSError:
        return ""
    if not head.startswith("---"):
        return ""
    front = head[3:].partition("\n---")[0]
    named = dict(re.findall(r"^(license|license_name):[ \t]*['\"]?([^'\"\n]*?)['\"]?[ \t]*$", front, re.MULTILINE))
    return str(named.get("license_name") or named.get("license") or "")


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
