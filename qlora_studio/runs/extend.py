"""More epochs for a run that has ended: its config and its record are changed, and its journal says so."""

from __future__ import annotations

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.events import Extended
from qlora_studio.runs.folder import JobFolder, read_json, write_json
from qlora_studio.runs.journal import Journal


def extend_run(folder: JobFolder, config: TrainConfig) -> None:
    """Has a run go on under `config`, which differs from its own in how long it is. It counts as stopped until then.

    In this order a kill in between leaves a run that can be extended again.
    """
    record = folder.path / "fingerprint.json"
    values = config.model_dump(mode="json")
    try:
        kept = read_json(record)
    except StudioError:
        kept = {}
    if isinstance(kept.get("settings"), dict):
        length = {name: values["optim"][name] for name in ("epochs", "max_steps", "ended_at")}
        kept["settings"] = {**kept["settings"], "optim": {**kept["settings"].get("optim", {}), **length}}
        write_json(record, kept)
    write_json(folder.config_file, values)
    journal = Journal(folder.events)
    journal.append(Extended(epochs=config.optim.epochs))
    journal.close()
