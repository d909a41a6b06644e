"""The weight files of a model's folder: which ones transformers loads, and that each lies where its name says.

What is loaded, hashed, merged and measured is this list. A folder comes from anywhere, so its index is read as a
stranger's word: only plain names of regular files count, and no link leads out.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_studio.core.errors import StudioError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MOST_JSON_BYTES = 64 << 20
"""The index of a trillion parameters in experts has some 20 MB."""
AGAIN = "Download the model again."


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files that hold a model's weights, in the order they are read."""

    folder: Path
    names: tuple[str, ...]
    """Plain names, each a regular file."""
    places: Mapping[str, str] | None = None
    """The file of each tensor as the index says; None where there is one file and no index."""

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(self.folder / name for name in self.names)

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.paths)


def find_weight_files(folder: Path) -> WeightFiles:
    """The safetensors files that transformers loads from this folder: `model.safetensors` before any index.

    Raises a StudioError where there are none, where the index is not one, or where a file is missing or elsewhere.
    """
    if os.path.lexists(folder / "adapter_config.json"):
        raise StudioError(
            "This folder holds an adapter_config.json, so that transformers would load another model in its place.",
            "Choose the folder of the base, or take that file out of this one.",
            where=str(folder),
        )
    named = _named_in_config(folder)
    first = next((name for name in ([named] if named else [WEIGHTS, INDEX]) if (folder / name).is_file()), None)
    if first is None:
        raise StudioError(f"This folder holds no {named or 'safetensors weights'}.", AGAIN, where=str(folder))
    if not first.endswith(".json"):
        return WeightFiles(folder, (find_plain_file(folder, first).name,))
    places = _read_places(find_plain_file(folder, first))
    names = tuple(sorted(set(places.values())))
    for name in names:
        if not name.endswith(".safetensors"):
            raise StudioError(f"The index names {name!r}, which is no safetensors file.", AGAIN, where=str(folder))
        find_plain_file(folder, name)
    return WeightFiles(folder, names, places)


def find_plain_file(folder: Path, name: str, most_bytes: int | None = None) -> Path:
    """A regular file right inside the folder. Raises a StudioError for a path, a link that leads out, a device.

    In the hub's own cache a snapshot's files are links to `blobs` beside it; these count as inside.
    """
    if not is_plain_name(name):
        raise StudioError(f"{name[:200]!r} is no plain file name.", AGAIN, where=str(folder))
    path, root = folder / name, folder.resolve()
    if root.parent.name == "snapshots" and (root.parent.parent / "blobs").is_dir():
        root = root.parent.parent
    try:
        found = path.resolve(strict=True)
        facts = found.stat()
    except (OSError, RuntimeError):
        raise StudioError(f"{name} is missing.", AGAIN, where=str(folder)) from None
    if not found.is_relative_to(root):
        raise StudioError(f"{name} is a link that leads out of this folder.", AGAIN, where=str(folder))
    if not stat.S_ISREG(facts.st_mode):
        raise StudioError(f"{name} is not a regular file.", AGAIN, where=str(folder))
    if most_bytes is not None and facts.st_size > most_bytes:
        raise StudioError(f"{name} has {facts.st_size:,} bytes, and none has so many.", AGAIN, where=str(folder))
    return path


def is_plain_name(name: str) -> bool:
    """Whether a name means one file of a folder on every system: no separator, drive, `..` or control character."""
    return (
        name not in ("", ".", "..")
        and len(name) <= 255
        and not any(sign in name for sign in '/\\:*?"<>|')
        and name.isprintable()
    )


def read_strict_json(path: Path) -> dict[str, Any]:
    """A JSON object of bounded size, without repeated keys, NaN or Infinity. Raises a StudioError for any other file."""
    try:
        if path.stat().st_size > MOST_JSON_BYTES:
            raise ValueError(f"it has {path.stat().st_size:,} bytes")
        values = parse_strict_json(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise StudioError(
            f"This file cannot be read: {error or type(error).__name__}.", AGAIN, where=str(path)
        ) from None
    return values


def parse_strict_json(text: bytes) -> dict[str, Any]:
    """The object in these bytes. Raises ValueError for what JSON's own standard forbids or leaves open."""
    values = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_refuse_constant)
    if not isinstance(values, dict):
        raise ValueError("it does not hold an object")
    return values


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it names {next(name for name in names if names.count(name) > 1)[:200]!r} twice")
    return values


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"it holds {name}, which is no JSON")


def _named_in_config(folder: Path) -> str | None:
    """The file that the model's configuration names, which transformers then takes alone."""
    if not (folder / "config.json").is_file():
        return None
    named = read_strict_json(find_plain_file(folder, "config.json")).get("transformers_weights")
    if named is None:
        return None
    if not isinstance(named, str) or not named.endswith((".safetensors", ".safetensors.index.json")):
        raise StudioError(
            f"transformers_weights is {str(named)[:200]!r}, which is no safetensors file.",
            AGAIN,
            where=str(folder / "config.json"),
            field="transformers_weights",
        )
    find_plain_file(folder, named)
    return named


def _read_places(index: Path) -> dict[str, str]:
    values = read_strict_json(index)
    places = values.get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        raise StudioError("The index has no weight_map from tensors to files.", AGAIN, where=str(index))
    if not isinstance(values.get("metadata"), dict):
        raise StudioError("The index has no metadata, and transformers loads none without.", AGAIN, where=str(index))
    return places
