"""What a run's curve depends on, written down when it begins and compared when it is resumed."""

from __future__ import annotations

import hashlib
import importlib.metadata
from typing import Any

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.data.sets.token_cache import TokenisedRows
from qlora_studio.engine.tokenizer import ChatTokenizer
from qlora_studio.runs.folder import read_json, write_json
from qlora_studio.worker.context import Context, FetchedBase

SCHEMA = 2
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "tokenizers", "safetensors")
MUST_STAY = ("base", "revision", "tokens_sha256", "template_sha256")
"""Facts without which a run that is resumed would be another run."""


def fingerprint(
    config: TrainConfig, base: FetchedBase, tokenizer: ChatTokenizer, rows: TokenisedRows
) -> dict[str, Any]:
    """What must be equal for the same curve: data, template, base, versions, seed."""
    tokens = f"{rows.train.sha256} {rows.held_out.sha256}"
    return {
        "schema": SCHEMA,
        "base": base.label,
        "revision": base.revision,
        "tokens_sha256": hashlib.sha256(tokens.encode()).hexdigest(),
        "template_sha256": hashlib.sha256(tokenizer.template.encode()).hexdigest(),
        "seed": config.optim.seed,
        "thinks": 2 * rows.train.reasoning_rows > len(rows.train.examples),
        "accepted_findings": list(config.data.accepted),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def keep_fingerprint(context: Context, made: dict[str, Any]) -> None:
    """Writes the record of a new run. Raises a StudioError where a run that goes on would not be the same one."""
    file = context.folder.path / "fingerprint.json"
    if file.exists():
        kept = read_json(file)
        if kept.get("schema") != made["schema"]:
            raise StudioError(
                "This run was begun by another version, which wrote its rows down differently.",
                "Start a new run; its checkpoints stay where they are.",
                where=str(file),
            )
        changed = [name for name in MUST_STAY if kept.get(name) != made[name]]
        if changed:
            raise StudioError(
                f"This run cannot be resumed: since it began, {', '.join(changed)} changed.",
                "Start a new run; its checkpoints stay where they are.",
                where=str(file),
            )
    write_json(file, made)
