"""The job `export`: a run into a new folder, by the exporter of its kind, checked before it is called done."""

from __future__ import annotations

import shutil
from pathlib import Path

from qlora_studio.core import events as ev
from qlora_studio.core.errors import StudioError
from qlora_studio.core.exports import ExportKind, find_export_kind
from qlora_studio.core.jobs import ExportReport, ExportRequest
from qlora_studio.core.plan import GIB
from qlora_studio.engine.exporters.comparison import ChatRecord, record_chat
from qlora_studio.engine.exporters.protocol import ExportSource
from qlora_studio.engine.exporters.registry import find_exporter
from qlora_studio.engine.load import choose_device
from qlora_studio.engine.manifest import find_damage
from qlora_studio.runs.folder import JobFolder
from qlora_studio.worker.context import Context
from qlora_studio.worker.loaded_run import chosen_adapter, compute_of, open_run


def run(context: Context) -> ev.Event:
    request = context.request(ExportRequest)
    folder, target = JobFolder(request.run), request.to
    kind, exporter = find_export_kind(request.kind), find_exporter(request.kind)
    adapter = chosen_adapter(context, folder, request.checkpoint)
    if damage := find_damage(adapter):
        raise StudioError(damage, "Train again, or choose another run.")
    source = find_source(context, adapter, kind, request)
    stage = target.with_name(f".{target.name}.part")
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    try:
        check_room(stage, exporter.size_bytes(source))
        record = ask_the_chat(context, request) if kind.compares_with_chat else None
        source.device.accelerator.release()  # what the chat held
        exporter.write(source, stage, context.emit)
        exporter.check(source, stage, record, context.emit)
        if context.pending_request() == "stop":
            return ev.Stopped()
        if target.exists():  # empty: the studio refuses any other before the job starts
            target.rmdir()
        stage.rename(target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    context.emit(ev.Exported(what=request.kind, path=str(target), bytes=size))
    return ev.Finished(report=ExportReport(path=target, bytes=size))


def find_source(context: Context, adapter: Path, kind: ExportKind, request: ExportRequest) -> ExportSource:
    """The run's files, with its base fetched where this kind needs it."""
    folder = JobFolder(request.run)
    config = context.config(folder)
    base = context.fetch_base(config).folder if kind.needs_base else None
    return ExportSource(adapter, base, choose_device(compute_of(folder, config)), request.merge_into)


def check_room(stage: Path, need: int) -> None:
    """Raises a StudioError where the disk has no room for the artefact."""
    free = shutil.disk_usage(stage).free
    if free < need:
        raise StudioError(
            f"The export needs {need / GIB:.1f} GiB, and {free / GIB:.1f} GiB are free.",
            "Choose another disk.",
            where=str(stage.parent),
        )


def ask_the_chat(context: Context, request: ExportRequest) -> ChatRecord | None:
    """What base and adapter answer as in the chat; None without prompts. The model is gone afterwards."""
    if not request.prompts:
        return None
    live = open_run(context, JobFolder(request.run), request.checkpoint)
    context.phase("answering with the adapter")
    return record_chat(live.model, live.tokenizer, live.options, request.prompts)
