"""The job `adopt`: an adapter from elsewhere becomes a run of its own, once it is known to fit its base.

It is copied, so that the run stays whole whatever becomes of the folder it came from.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from qlora_studio.core import events as ev
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import AdoptReport, AdoptRequest
from qlora_studio.engine.adapter_file import CONFIG, WEIGHTS, AdapterFile
from qlora_studio.engine.companions import TOKENIZER
from qlora_studio.engine.load import choose_device
from qlora_studio.engine.manifest import write_folder
from qlora_studio.engine.merge import MergedWeights, MergeRecipe
from qlora_studio.runs.folder import write_json
from qlora_studio.weight_files import find_plain_file
from qlora_studio.worker.context import Context
from qlora_studio.worker.fingerprint import SCHEMA, identify_base


def run(context: Context) -> ev.Event:
    request, config = context.request(AdoptRequest), context.config()
    base = context.fetch_base(config)
    context.phase("comparing adapter and base")
    merged = MergedWeights(
        MergeRecipe(base.folder, request.adapter, "as_chatted", choose_device(config.model.compute_dtype).dtype)
    )
    adapter = merged.adapter
    merged.close()
    refuse_what_cannot_be_switched_off(adapter)
    values = adapter.config | {"base_model_name_or_path": base.label, "inference_mode": True}

    def fill(stage: Path) -> None:
        (stage / CONFIG).write_text(json.dumps(values, indent=1, sort_keys=True), encoding="utf-8")
        shutil.copyfile(find_plain_file(request.adapter, WEIGHTS), stage / WEIGHTS)
        for name, most_bytes in TOKENIZER.items():
            if (request.adapter / name).exists():
                shutil.copyfile(find_plain_file(request.adapter, name, most_bytes), stage / name)

    write_folder(context.folder.adapter, fill)
    identity = identify_base(context, base.folder).model_dump(mode="json")
    known = {"schema": SCHEMA, "base": base.label, "revision": base.revision, "identity": identity}
    write_json(context.folder.path / "fingerprint.json", known)
    return ev.Finished(report=AdoptReport(layers=len(adapter.pairs)))


def refuse_what_cannot_be_switched_off(adapter: AdapterFile) -> None:
    """Raises a StudioError for an adapter that trains biases of the base: they have no copy, so the base would be gone."""
    if (adapter.config.get("bias") or "none") != "none":
        raise StudioError(
            "This adapter has trained the base's own biases, which cannot be switched off to compare with the base.",
            "Merge it with peft and use the result as a base.",
            where=str(adapter.folder),
        )
