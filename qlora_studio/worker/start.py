"""The weights that a run starts from, where it is told to: kept with the run, so that it needs the other no more."""

from __future__ import annotations

import shutil
from pathlib import Path

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.identity import Identity
from qlora_studio.engine.checkpoints import ADAPTER_FILES
from qlora_studio.engine.manifest import find_damage, write_folder
from qlora_studio.runs.checkpoints import find_weights
from qlora_studio.runs.folder import find_job, read_json
from qlora_studio.worker.context import Context
from qlora_studio.worker.fingerprint import FILE, read_identity

START = "start"


def find_start(context: Context, config: TrainConfig, base: Identity) -> Path | None:
    """The folder of the weights to start from, copied into the run at its first start; None for a new adapter.

    Raises a StudioError for a run or checkpoint that is not there, is damaged, or was trained on another base.
    """
    if not config.model.adapter:
        return None
    place = context.folder.path / START
    if place.exists():
        if damage := find_damage(place):
            raise StudioError(damage, "Start a new run.")
        return place
    name, _, choice = config.model.adapter.strip().partition("@")
    other = find_job(context.home.runs, name, "run")
    weights = find_weights(other, choice)
    if damage := find_damage(weights):
        raise StudioError(damage, "Choose another checkpoint to start from.", field="model.adapter")
    kept = other.path / FILE
    if kept.exists() and (differences := read_identity(read_json(kept)).differences(base)):
        raise StudioError(
            f"The adapter of '{name}' was trained on another base. {' '.join(differences)}",
            "Choose the base it was trained on.",
            field="model.adapter",
        )

    def fill(stage: Path) -> None:
        for file in ADAPTER_FILES:
            shutil.copyfile(weights / file, stage / file)

    write_folder(place, fill)
    return place
