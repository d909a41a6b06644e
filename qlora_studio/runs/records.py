"""Reading a run's record from its folder."""

from __future__ import annotations

from pathlib import Path

from qlora_studio.core.errors import StudioError
from qlora_studio.core.record import DataRecord, RunRecord
from qlora_studio.core.runs import RunView
from qlora_studio.runs.folder import read_json


def is_local_path(base: str) -> bool:
    """Whether a base is named by where it lies on this machine."""
    return Path(base).is_absolute() or base.startswith((".", "~")) or "\\" in base or base.count("/") > 1


def read_record(run: RunView) -> RunRecord:
    """Settings, hashes, versions and losses of a run. A base that is a local path stands there by its folder's name."""
    try:
        fingerprint = read_json(run.folder / "fingerprint.json")
    except StudioError:
        fingerprint = {}
    config = run.config
    if is_local_path(config.model.base):
        config = config.replace({"model.base": str(fingerprint.get("base") or Path(config.model.base).name)})
    hashes = fingerprint.get("datasets") or {}
    progress = run.progress
    return RunRecord(
        name=run.name,
        labels=run.labels,
        config=config,
        fingerprint=fingerprint,
        data=tuple(
            DataRecord(name=source.name, sha256=str(hashes.get(source.name, ""))) for source in config.data.sources
        ),
        state=run.state,
        losses=tuple(progress.losses),
        evaluations=tuple(progress.evaluations),
        peak_bytes=progress.peak_bytes,
    )
