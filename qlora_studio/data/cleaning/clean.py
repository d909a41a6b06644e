"""The findings of an imported set, kept beside it, and the cleaning steps that change it."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from array import array
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from qlora_studio.core.dataset import DatasetReport, Finding
from qlora_studio.core.errors import StudioError
from qlora_studio.data.cleaning.lint import lint
from qlora_studio.data.cleaning.steps import Rows, cleaned
from qlora_studio.data.sets.canonical import (
    CONVERSATIONS,
    EVALUATION,
    FINDINGS,
    PROMPTS,
    REPORT,
    read_conversations,
    read_report,
    swap_in,
    to_line,
)
from qlora_studio.data.sets.sides import prompt_hash
from qlora_studio.data.sets.store import find_dataset


def lint_dataset(folder: Path, name: str) -> tuple[Finding, ...]:
    """The findings of a set. Looked for once; read from beside it as long as its content is the same."""
    place = find_dataset(folder, name)
    report = read_report(place)
    kept = place / FINDINGS
    try:
        values = json.loads(kept.read_bytes())
        if values["sha256"] == report.sha256:
            return tuple(Finding.model_validate(value) for value in values["findings"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not looked for yet, or written by another version: look again
    held_out: frozenset[int] = frozenset()
    if (place / EVALUATION).exists():
        held_out = frozenset(map(prompt_hash, read_conversations(place / EVALUATION, name)))
    findings = lint(read_conversations(place / CONVERSATIONS, name), held_out)
    values = {"sha256": report.sha256, "findings": [finding.model_dump(mode="json") for finding in findings]}
    stage = kept.with_suffix(".part")
    stage.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    stage.replace(kept)
    return findings


def apply_steps(folder: Path, name: str, steps: Sequence[str]) -> DatasetReport:
    """Cleans a set by these steps, whole or not at all; its report records them. Raises for an unknown name."""
    place = find_dataset(folder, name)
    report = read_report(place)
    stage = Path(tempfile.mkdtemp(prefix=".clean-", dir=folder))
    try:
        rows, hashes, digest = _rewrite(place, CONVERSATIONS, stage, name, steps)
        if not rows:
            raise StudioError("These steps would leave no row.", "Clean the source instead.", where=name)
        eval_rows = 0
        if (place / EVALUATION).exists():
            eval_rows, _, held_out = _rewrite(place, EVALUATION, stage, name, steps)
            digest.update(held_out.digest())
        (stage / PROMPTS).write_bytes(hashes.tobytes())
        done = [*report.details.get("cleaned_by", ()), *steps]
        changes = {
            "rows": rows,
            "eval_rows": eval_rows,
            "sha256": digest.hexdigest(),
            "details": {
                **report.details,
                "cleaned_by": done,
                "rows_imported": report.details.get("rows_imported", report.rows),
            },
        }
        report = report.model_copy(update=changes)
        (stage / REPORT).write_text(report.model_dump_json(indent=2), encoding="utf-8")
        swap_in(stage, place)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return report


def _rewrite(
    place: Path, file: str, stage: Path, name: str, steps: Iterable[str]
) -> tuple[int, array[int], hashlib._Hash]:
    """The file with its rows cleaned: how many are left, the hashes of their prompts, and the digest of their lines."""
    hashes, digest = array("Q"), hashlib.sha256()
    rows = Rows(partial(read_conversations, place / file, name))
    with (stage / file).open("w", encoding="utf-8", newline="\n") as out:
        for conversation in cleaned(rows, steps):
            line = to_line(conversation) + "\n"
            out.write(line)
            digest.update(line.encode())
            hashes.append(prompt_hash(conversation))
    return len(hashes), hashes, digest
