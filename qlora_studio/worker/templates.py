"""Trying a model's chat template once before anything is rendered with it; a template that passed is remembered."""

from __future__ import annotations

import hashlib
from pathlib import Path

from qlora_studio.engine.template_vetting import vet_template
from qlora_studio.runs.folder import write_json
from qlora_studio.worker.context import Context

FILES = ("chat_template.jinja", "tokenizer_config.json", "chat_template.json")


def vet_once(context: Context, folder: Path, template: str | None) -> None:
    """Raises a StudioError for a template that hangs, swells, fails or drops what is said; quick the second time."""
    digest = hashlib.sha256(str(template).encode())
    for name in FILES:
        if (folder / name).is_file():
            digest.update((folder / name).read_bytes())
    passed = context.home.cache / "templates" / f"{digest.hexdigest()}.json"
    if passed.exists():
        return
    context.phase("trying the chat template")
    report = vet_template(folder, template)
    passed.parent.mkdir(parents=True, exist_ok=True)
    write_json(passed, {"end_of_turn": report.end_of_turn, "knows_tools": report.knows_tools})
