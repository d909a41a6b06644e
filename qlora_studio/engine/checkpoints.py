"""Writing an adapter and a training state so that a kill at any moment leaves the old one or the new one, whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

SCHEMA = 1


def write_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Fills a staging folder beside `target`, writes its manifest, syncs it to disk and renames it into place.

    A folder that stands there already is moved to `.trash` first and deleted last.
    """
    stage = target.parent / ".stage" / target.name
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    fill(stage)
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(stage.iterdir())}
    (stage / "MANIFEST.json").write_text(json.dumps({"schema": SCHEMA, "files": files}, indent=1), encoding="utf-8")
    for path in (*stage.iterdir(), stage):
        sync(path)
    trash = target.parent / ".trash" / target.name
    if target.exists():
        shutil.rmtree(trash, ignore_errors=True)
        trash.parent.mkdir(exist_ok=True)
        target.rename(trash)
    stage.rename(target)
    sync(target.parent)
    shutil.rmtree(trash, ignore_errors=True)
    for folder in (stage.parent, trash.parent):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def find_damage(folder: Path) -> str:
    """What is wrong with a folder written by `write_folder`, naming the file; empty where every byte is as it was."""
    manifest = folder / "MANIFEST.json"
    try:
        listed = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{manifest} is missing or unreadable."
    if listed.get("schema") != SCHEMA:
        return f"{manifest} was written by another version (schema {listed.get('schema')})."
    for name, facts in listed["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != facts["bytes"]:
            return f"{path} is missing or of another size."
        if sha256(path) != facts["sha256"]:
            return f"{path} is not what was written."
    return ""


def save_adapter(model: PeftModel, folder: Path, base: str, revision: str | None) -> None:
    """The adapter in PEFT's format, loadable by PEFT itself; names the base by id, never by a path of this machine."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in get_peft_model_state_dict(model).items()}
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    values: dict[str, Any] = model.peft_config["default"].to_dict()
    values |= {"base_model_name_or_path": base, "revision": revision, "inference_mode": True}
    values["target_modules"] = sorted(values["target_modules"])
    (folder / "adapter_config.json").write_text(
        json.dumps(values, indent=1, sort_keys=True, default=_plain), encoding="utf-8"
    )


def save_state(folder: Path, optimizer: torch.optim.Optimizer, position: dict[str, Any]) -> None:
    """Optimizer states as safetensors and the position in the run as JSON: no pickle, so nothing can run on loading."""
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, Any] = {}
    for key, value in _leaves(optimizer.state_dict()["state"], ()):
        if isinstance(value, torch.Tensor):
            tensors[key] = value.detach().cpu().clone()  # bitsandbytes shares its code tables between states
        else:
            plain[key] = value
    tensors["rng.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    save_file(tensors, folder / "optimizer.safetensors")
    values = {"position": position, "plain": plain}
    (folder / "state.json").write_text(json.dumps(values, indent=1), encoding="utf-8")


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose every byte is as written, and what was wrong with those passed over."""
    damages = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        if damage := find_damage(path):
            damages.append(damage)
            continue
        return path, damages
    return None, damages


def load_state(folder: Path, model: PeftModel, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Puts adapter, optimizer and random numbers back as they were when saved; gives the position.

    The folder must have passed `find_damage`.
    """
    set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"), adapter_name="default")
    values: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "optimizer.safetensors")
    torch.set_rng_state(tensors.pop("rng.cpu"))
    cuda = tensors.pop("rng.cuda", None)
    if cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)
    state: dict[int, dict[str, Any]] = {}
    for key, value in (*tensors.items(), *values["plain"].items()):
        index, *path = key.split("/")
        place = state.setdefault(int(index), {})
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    position: dict[str, Any] = values["position"]
    return position


def _leaves(values: dict[Any, Any], path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """The values of nested dictionaries, by their path."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, str(name)))
        else:
            yield "/".join((*path, str(name))), value


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Asks the system to put a file or folder on the disk. Windows cannot sync folders and is not asked to."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else getattr(value, "value", str(value))
