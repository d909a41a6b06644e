"""Folders that are whole or not there: filled beside their place, listed by hash, put on the disk, renamed into it.

A kill at any moment leaves the old folder or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

SCHEMA = 1
MANIFEST = "MANIFEST.json"


def write_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Fills a staging folder beside `target`, writes its manifest, syncs it to disk and renames it into place.

    A folder that stands there already is moved to `.trash` first and deleted last. Where `fill` raises, it stays, and
    the staging folder goes.
    """
    stage, trash = target.parent / ".stage" / target.name, target.parent / ".trash" / target.name
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    try:
        fill(stage)
        files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(stage.iterdir())}
        (stage / MANIFEST).write_text(json.dumps({"schema": SCHEMA, "files": files}, indent=1), encoding="utf-8")
        for path in (*stage.iterdir(), stage):
            sync(path)
        move_away(target)
        stage.rename(target)
        sync(target.parent)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        if trash.exists() and not target.exists():
            trash.rename(target)
        raise
    finally:
        for folder in (stage.parent, trash.parent):
            _remove_if_empty(folder)
    remove(trash)


def move_away(folder: Path) -> Path:
    """Renames a folder, where it is there, into the `.trash` beside it, so that no half of it is ever seen."""
    trash = folder.parent / ".trash" / folder.name
    if folder.exists():
        shutil.rmtree(trash, ignore_errors=True)
        trash.parent.mkdir(exist_ok=True)
        folder.rename(trash)
    return trash


def remove(folder: Path) -> None:
    """Deletes a folder, out of sight first, so that a kill in between leaves no half of it visible."""
    if folder.parent.name != ".trash":
        folder = move_away(folder)
    shutil.rmtree(folder, ignore_errors=True)
    _remove_if_empty(folder.parent)


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def find_damage(folder: Path) -> str:
    """What is wrong with a folder written by `write_folder`, naming the file; empty where every byte is as it was."""
    manifest = folder / MANIFEST
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


def sha256(path: Path) -> str:
    """The hash of a file's bytes, in hexadecimal."""
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
