"""What a run's curve depends on, written down when it begins, and compared wherever the run is taken up again."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_studio.core import events as ev
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.identity import Identity
from qlora_studio.data.sets.token_cache import TokenisedRows
from qlora_studio.engine.tokenizer import ChatTokenizer
from qlora_studio.engine.weights import hash_cache, identify
from qlora_studio.runs.folder import JobFolder, read_json, write_json
from qlora_studio.worker.context import Context, FetchedBase

SCHEMA = 2
FILE = "fingerprint.json"
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "tokenizers", "safetensors")
MUST_STAY = {
    "base": "The base is another one: {now} instead of {before}.",
    "revision": "The base's revision is {now} instead of {before}.",
    "tokens_sha256": "The rows are others, or become other tokens.",
    "template_sha256": "The chat template is not the one it was trained with.",
}
"""Facts without which a run that is resumed would be another run, and how their change is said."""
SETTLED = ("data", "lora", "optim")
"""Sections of the config that decide the curve; what the others say may change while a run rests."""


def fingerprint(
    config: TrainConfig, base: FetchedBase, tokenizer: ChatTokenizer, rows: TokenisedRows, identity: Identity
) -> dict[str, Any]:
    """What must be equal for the same curve: weights, data, template, settings, versions, seed."""
    tokens = f"{rows.train.sha256} {rows.held_out.sha256}"
    settings = config.model_dump(mode="json")
    return {
        "schema": SCHEMA,
        "base": base.label,
        "revision": base.revision,
        "identity": identity.model_dump(mode="json"),
        "tokens_sha256": hashlib.sha256(tokens.encode()).hexdigest(),
        "template_sha256": template_sha256(tokenizer),
        "settings": {section: settings[section] for section in SETTLED},
        "seed": config.optim.seed,
        "thinks": 2 * rows.train.reasoning_rows > len(rows.train.examples),
        "accepted_findings": list(config.data.accepted),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def identify_base(context: Context, folder: Path) -> Identity:
    """The hashes of a base's weight files, read from the cache where the files have not changed since."""
    context.phase("hashing the base's weights")

    def advanced(done: int, total: int) -> None:
        context.emit(ev.Advanced(done=done, total=total, unit="bytes"))

    return identify(folder, None, None, hash_cache(context.home.cache), advanced)


def template_sha256(tokenizer: ChatTokenizer) -> str:
    return hashlib.sha256(tokenizer.template.encode()).hexdigest()


def keep_fingerprint(context: Context, made: dict[str, Any]) -> None:
    """Writes the record of a new run. Raises a StudioError where a run that goes on would not be the same one.

    What changed in version only is said and added to the record, beside what it was.
    """
    file = context.folder.path / FILE
    if not file.exists():
        write_json(file, made)
        return
    kept = read_json(file)
    if kept.get("schema") != made["schema"]:
        raise StudioError(
            "This run was begun by another version, which wrote its rows down differently.",
            "Start a new run; its checkpoints stay where they are.",
            where=str(file),
        )
    if changed := find_changes(kept, made):
        raise StudioError(
            f"This run cannot be resumed, for it would be another one. {' '.join(changed)}",
            "Bring that back as it was, or start a new run from its weights: "
            f"`qlora-studio train --adapter {context.folder.name}`. Its checkpoints stay where they are.",
            where=str(file),
        )
    newest = (kept.get("resumed_with") or [kept.get("versions") or {}])[-1]
    versions = [
        f"{name} {newest[name]} before, {version} now" for name, version in made["versions"].items()
        if name in newest and newest[name] != version
    ]  # fmt: skip
    if versions:
        text = f"Since this run was last at work, versions changed: {', '.join(versions)}. Its curve may differ by rounding."
        context.emit(ev.Noted(text=text))
        kept["resumed_with"] = [*kept.get("resumed_with", []), made["versions"]]
    write_json(file, {**made, **kept})


def kept_rate(folder: JobFolder) -> float | None:
    """The learning rate a run was begun with; None for one that has not begun."""
    file = folder.path / FILE
    settings = read_json(file).get("settings") if file.exists() else None
    rate = (settings.get("optim") or {}).get("learning_rate") if isinstance(settings, dict) else None
    return float(rate) if isinstance(rate, int | float) and not isinstance(rate, bool) else None


def find_changes(kept: Mapping[str, Any], made: Mapping[str, Any]) -> list[str]:
    """A sentence for everything that must stay and did not; what an earlier version did not write differs in nothing."""
    sentences = [
        words.format(before=kept.get(name) or "none", now=made[name] or "none")
        for name, words in MUST_STAY.items()
        if kept.get(name) != made[name]
    ]
    sentences += read_identity(kept).differences(read_identity(made))
    before, now = kept.get("settings") or {}, made["settings"]
    for section in before.keys() & now.keys():
        for field in before[section].keys() & now[section].keys():
            if before[section][field] != now[section][field]:
                sentences.append(f"{section}.{field} is {now[section][field]} instead of {before[section][field]}.")
    return sorted(sentences)


def read_identity(kept: Mapping[str, Any]) -> Identity:
    """The identity in a fingerprint; one that knows nothing where an earlier version wrote none."""
    return Identity.model_validate(kept.get("identity") or {})


def check_same_weights(context: Context, folder: JobFolder, base: FetchedBase, tokenizer: ChatTokenizer) -> None:
    """Raises a StudioError where a run's base or template is not what it was trained with, listing what differs."""
    file = folder.path / FILE
    if not file.exists():
        return
    kept = read_json(file)
    sentences = list(read_identity(kept).differences(identify_base(context, base.folder)))
    if kept.get("template_sha256") not in (None, template_sha256(tokenizer)):
        sentences.append(MUST_STAY["template_sha256"])
    if sentences:
        raise StudioError(
            f"This adapter would not answer as it was trained. {' '.join(sentences)}",
            "Bring the base back as it was, or train a new run on this one.",
            where=str(base.folder),
        )
