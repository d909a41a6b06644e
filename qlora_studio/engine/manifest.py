"""Folders that are whole or not there: filled beside their place, listed by hash, put on the disk, renamed into it.

A kill at any moment leaves the old folder or the new one in its place.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from qlora_studio.faults import fault

SCHEMA = 1
MANIFEST = "MANIFEST.json"
STAGE, TRASH = ".stage", ".trash"
AT_FDCWD = -100  # <fcntl.h>
RENAME_EXCHANGE = 2  # <linux/fs.h>
RENAME_SWAP = 2  # <sys/stdio.h> of macOS


def write_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Fills a staging folder beside `target`, writes its manifest, syncs it to disk and puts it into place.

    A folder that stands there already changes places with it in one step, where the system can do that, and is deleted
    last. Where anything raises, it stays, and the staging folder goes.
    """
    stage = target.parent / STAGE / target.name
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    try:
        fault("save.begin")
        fill(stage)
        fault("save.filled")
        files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(stage.iterdir())}
        (stage / MANIFEST).write_text(json.dumps({"schema": SCHEMA, "files": files}, indent=1), encoding="utf-8")
        fault("save.manifest")
        for path in (*stage.iterdir(), stage):
            sync(path)
        fault("save.synced")
        put_into_place(stage, target)
        fault("save.placed")
        sync(target.parent)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    finally:
        _remove_if_empty(stage.parent)
    shutil.rmtree(stage, ignore_errors=True)
    remove(target.parent / TRASH / target.name)
    _remove_if_empty(stage.parent)


def put_into_place(stage: Path, target: Path) -> None:
    """Renames `stage` to `target`. What stood there is afterwards at `stage`, or in the trash.

    Where the system cannot let two folders change places, there is a moment without either; `sweep` then brings the
    old one back.
    """
    if not target.exists():
        stage.rename(target)
    elif not exchange(stage, target):
        trash = move_away(target)
        fault("save.swap")
        try:
            stage.rename(target)
        except OSError:
            trash.rename(target)
            raise


def exchange(first: Path, second: Path) -> bool:
    """Lets two folders change places in one step: `renameat2` of Linux, `renamex_np` of macOS. False where it cannot."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            done = library.renamex_np(os.fsencode(first), os.fsencode(second), RENAME_SWAP)
        else:
            done = library.renameat2(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE)
    except (OSError, AttributeError, TypeError):  # Windows, or a system without the call
        return False
    return bool(done == 0)


def move_away(folder: Path) -> Path:
    """Renames a folder, where it is there, into the `.trash` beside it, so that no half of it is ever seen."""
    trash = folder.parent / TRASH / folder.name
    if folder.exists():
        shutil.rmtree(trash, ignore_errors=True)
        trash.parent.mkdir(exist_ok=True)
        folder.rename(trash)
    return trash


def remove(folder: Path) -> None:
    """Deletes a folder, out of sight first, so that a kill in between leaves no half of it visible."""
    if folder.parent.name != TRASH:
        folder = move_away(folder)
        fault("save.trashed")
    shutil.rmtree(folder, ignore_errors=True)
    _remove_if_empty(folder.parent)


def sweep(parent: Path) -> None:
    """Clears what a kill left in the staging and trash folders below `parent`, which nobody may be writing to.

    A whole folder in the trash whose place is empty was moved away for a newer one that never came: it goes back.
    """
    for old in sorted((parent / TRASH).glob("*")):
        if not (parent / old.name).exists() and not find_damage(old):
            old.rename(parent / old.name)
    for leftovers in (parent / STAGE, parent / TRASH):
        shutil.rmtree(leftovers, ignore_errors=True)


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def find_damage(folder: Path) -> str:
    """What is wrong with a folder written by `write_folder`, naming the file; empty where every byte is as it was."""
    manifest = folder / MANIFEST
    try:
        listed = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return f"{manifest} is missing or unreadable."
    if not isinstance(listed, dict):
        return f"{manifest} is no manifest."
    if listed.get("schema") != SCHEMA:
        return f"{manifest} was written by another version (schema {listed.get('schema')})."
    files = listed.get("files")
    if not isinstance(files, dict) or not all(map(_is_entry, files.items())):
        return f"{manifest} is no manifest."
    for name, facts in files.items():
        path = folder / name
        try:
            if not path.is_file() or path.stat().st_size != facts["bytes"]:
                return f"{path} is missing or of another size."
            if sha256(path) != facts["sha256"]:
                return f"{path} is not what was written."
        except OSError as error:
            return f"{path} cannot be read: {error.strerror}."
    return ""


def _is_entry(item: tuple[object, object]) -> bool:
    """Whether this is a plain file name with its size and hash."""
    name, facts = item
    plain = isinstance(name, str) and name not in ("", ".", "..") and not {"/", "\\", "\0"} & set(name)
    return plain and isinstance(facts, dict) and {"bytes", "sha256"} <= facts.keys()


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
