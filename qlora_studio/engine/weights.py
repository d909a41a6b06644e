"""The identity of weights on the disk: which files are loaded, by their hashes, each computed once and remembered.

Which files these are says `weight_files.py`; what two identities differ in says `core/identity.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qlora_studio.core.identity import Identity
from qlora_studio.weight_files import find_plain_file, find_weight_files

READ_BYTES = 16 << 20
FRESH_SECONDS = 2.0
"""A file changed so lately is not remembered: another change could leave its time as it is."""
Advanced = Callable[[int, int], None]
"""Hears bytes done and total."""


@dataclass(frozen=True, slots=True)
class HashCache:
    """Hashes of files that have not changed since, by path, size, time of change and inode. No path is written down."""

    folder: Path
    """Under the home's cache."""

    def sha256(self, path: Path, advanced: Callable[[int], None] = lambda bytes: None) -> str:
        """The hash of a file in hexadecimal, from the cache where it is the same file; `advanced` is called with the bytes read."""
        place = self.folder / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.json"
        facts = _facts(path)
        try:
            kept = json.loads(place.read_text(encoding="utf-8"))
            if kept["facts"] == facts and len(kept["sha256"]) == 64:
                advanced(facts[0])
                return str(kept["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        found = _hash(path, advanced)
        if _facts(path) == facts and time.time() - facts[1] / 1e9 > FRESH_SECONDS:
            self._keep(place, facts, found)
        return found

    def _keep(self, place: Path, facts: list[int], sha256: str) -> None:
        part = place.with_name(f".{place.name}.{os.getpid()}.part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps({"facts": facts, "sha256": sha256}), encoding="utf-8")
            part.replace(place)
        except OSError:  # a cache that cannot be written costs time, not the job
            with contextlib.suppress(OSError):
                part.unlink()


def hash_cache(cache: Path) -> HashCache:
    """The cache of hashes under the home's cache folder."""
    return HashCache(cache / "hashes")


def identify(
    base: Path | None,
    adapter: Path | None,
    template: str | None,
    hashes: HashCache,
    advanced: Advanced = lambda done, total: None,
) -> Identity:
    """The identity of a base's folder, an adapter's folder and the source of a chat template; None for what is not asked.

    Raises a StudioError for a folder whose weights cannot be loaded.
    """
    base_files = find_weight_files(base).paths if base else ()
    names = sorted(path.name for path in adapter.iterdir() if path.name.startswith("adapter_")) if adapter else []
    adapter_files = tuple(find_plain_file(adapter, name) for name in names) if adapter else ()
    total, done = sum(path.stat().st_size for path in (*base_files, *adapter_files)), 0

    def step(bytes: int) -> None:
        nonlocal done
        done += bytes
        advanced(done, total)

    return Identity(
        base={path.name: hashes.sha256(path, step) for path in base_files} if base else None,
        adapter={path.name: hashes.sha256(path, step) for path in adapter_files} if adapter else None,
        template=None if template is None else hashlib.sha256(template.encode()).hexdigest(),
    )


def _facts(path: Path) -> list[int]:
    facts = path.stat()
    return [facts.st_size, facts.st_mtime_ns, facts.st_ino]


def _hash(path: Path, advanced: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
            advanced(len(block))
    return digest.hexdigest()
