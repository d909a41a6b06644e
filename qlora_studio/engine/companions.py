"""The files that travel with weights: tokenizer, template, generation settings, licence. Copied as strangers' files are."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from qlora_studio.core.errors import StudioError
from qlora_studio.weight_files import find_plain_file, read_strict_json

MIB = 1 << 20
TOKENIZER: dict[str, int] = {
    "tokenizer.json": 256 * MIB, "tokenizer.model": 64 * MIB, "vocab.json": 64 * MIB, "merges.txt": 64 * MIB,
    "tokenizer_config.json": 64 * MIB, "special_tokens_map.json": 4 * MIB, "added_tokens.json": 64 * MIB,
    "chat_template.jinja": 4 * MIB,
}  # fmt: skip
"""Most bytes of each; the largest known, Gemma's tokenizer.json, has 33 MB."""
SETTINGS: dict[str, int] = {"generation_config.json": MIB}
LICENCE_STEMS = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
MOST_LICENCE_BYTES = 4 * MIB


def copy_companions(base: Path, adapter: Path, out: Path) -> None:
    """Copies what belongs to the weights into `out`; of tokenizer and template the adapter's own copy wins.

    Raises a StudioError for a link that leads out of its folder, a device, or a file that is far too large.
    """
    for name, most_bytes in (TOKENIZER | SETTINGS).items():
        folder = adapter if os.path.lexists(adapter / name) else base
        if os.path.lexists(folder / name):
            _copy(folder, name, out, most_bytes)
    copy_licences(base, out)
    _plain_config(out / "tokenizer_config.json")


def copy_licences(base: Path, out: Path) -> list[str]:
    """Copies the base's licence files into `out`; their names."""
    names = sorted(entry.name for entry in base.iterdir() if entry.name.upper().startswith(LICENCE_STEMS))
    for name in names:
        _copy(base, name, out, MOST_LICENCE_BYTES)
    return names


def _copy(folder: Path, name: str, out: Path, most_bytes: int) -> None:
    try:
        shutil.copyfile(find_plain_file(folder, name, most_bytes), out / name)
    except StudioError as error:
        problem = error.problems[0]
        raise StudioError(
            f"A file that belongs to the model cannot be copied: {problem.message}",
            "Put the real file in its place, or download the model again.",
            where=str(folder),
        ) from None


def _plain_config(path: Path) -> None:
    """Takes out of the copy what names a place of this machine or code to run."""
    if not path.exists():
        return
    values = read_strict_json(path)
    kept = {key: value for key, value in values.items() if key not in ("name_or_path", "auto_map", "is_local")}
    if kept != values:
        path.write_text(json.dumps(kept, indent=2, ensure_ascii=False), encoding="utf-8")
