"""The job `combine`: the adapters of several runs of one base, with weights, as a run of its own."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack, closing
from itertools import combinations
from pathlib import Path

from safetensors.torch import save_file

from qlora_studio.core import events as ev
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import CombinePart, CombineReport, CombineRequest
from qlora_studio.engine.adapter_file import CONFIG, WEIGHTS, AdapterFile
from qlora_studio.engine.checkpoints import ADAPTER_FILES
from qlora_studio.engine.combine import combine
from qlora_studio.engine.load import choose_device
from qlora_studio.engine.manifest import MANIFEST, find_damage, sha256, write_folder
from qlora_studio.engine.merge import MergedWeights, MergeRecipe
from qlora_studio.runs.checkpoints import find_weights
from qlora_studio.runs.folder import JobFolder, read_json, write_json
from qlora_studio.worker.context import Context
from qlora_studio.worker.fingerprint import FILE, SCHEMA, identify_base, read_identity


def run(context: Context) -> ev.Event:
    request, config = context.request(CombineRequest), context.config()
    base = context.fetch_base(config)
    identity = identify_base(context, base.folder)
    known = [_fingerprint(part.run) for part in request.parts]
    for part, kept in zip(request.parts, known, strict=True):
        if changed := read_identity(kept).differences(identity):
            raise StudioError(
                f"The run '{part.run.name}' was trained on another base than the first. {changed[0]}",
                "Combine runs of one base.",
            )
    if len({kept.get("template_sha256") for kept in known if kept.get("template_sha256")}) > 1:
        raise StudioError("These runs were trained with different chat templates.", "Combine runs that share one.")
    context.phase("combining the adapters")
    with ExitStack() as stack:
        files, digests = [], []
        for part in request.parts:
            weights = find_weights(JobFolder(part.run), part.checkpoint)
            if damage := find_damage(weights):
                raise StudioError(damage, "Choose another run or checkpoint.")
            files.append(stack.enter_context(closing(AdapterFile(weights))))
            digests.append(sha256(weights / WEIGHTS))
        for first, second in combinations(range(len(digests)), 2):
            if digests[first] == digests[second]:
                names = f"{_name(request.parts[first])} and {_name(request.parts[second])}"
                context.emit(ev.Noted(text=f"{names} hold the same weights: one part, counted twice."))
        made = combine([(file, part.weight) for file, part in zip(files, request.parts, strict=True)], request.how)
    adapter = JobFolder(request.parts[0].run).adapter  # a checkpoint has nothing beside its weights but how to go on
    beside = [path for path in adapter.glob("*") if path.name not in (*ADAPTER_FILES, MANIFEST)]

    def fill(stage: Path) -> None:
        values = made.config | {"base_model_name_or_path": base.label}
        (stage / CONFIG).write_text(json.dumps(values, indent=1, sort_keys=True), encoding="utf-8")
        save_file(made.tensors, stage / WEIGHTS, metadata={"format": "pt"})
        for path in beside:
            shutil.copyfile(path, stage / path.name)

    write_folder(context.folder.adapter, fill)
    dtype = choose_device(config.model.compute_dtype).dtype
    MergedWeights(MergeRecipe(base.folder, context.folder.adapter, "as_chatted", dtype)).close()  # it fits the base
    write_json(
        context.folder.path / FILE,
        {
            "schema": SCHEMA,
            "base": base.label,
            "revision": base.revision,
            "identity": identity.model_dump(mode="json"),
            "thinks": bool(known[0].get("thinks")),
            "template_sha256": known[0].get("template_sha256"),
            "parts": [
                {"name": _name(part), "weight": part.weight, "sha256": digest}
                for part, digest in zip(request.parts, digests, strict=True)
            ],
        },
    )
    return ev.Finished(report=CombineReport(layers=len(made.config["target_modules"]), rank=made.config["r"]))


def _name(part: CombinePart) -> str:
    return f"{part.run.name} ({part.checkpoint})" if part.checkpoint else part.run.name


def _fingerprint(run: Path) -> dict[str, object]:
    file = run / FILE
    return read_json(file) if file.exists() else {}
