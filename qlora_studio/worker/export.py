"""The job `export`: a run into a new folder, by the exporter of its kind, asked what the chat was asked before it is
called done.

The artefact is asked in a process of its own, which has its files and the record of the chat, and nothing else.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qlora_studio.core import events as ev
from qlora_studio.core.card import CardFacts, write_card
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.exports import ExportOptions, find_export_kind
from qlora_studio.core.identity import Identity
from qlora_studio.core.jobs import ExportReport, ExportRequest
from qlora_studio.core.plan import GIB
from qlora_studio.core.verdict import find_verdict
from qlora_studio.data.sets.prepare import Stopped
from qlora_studio.engine.companions import LICENCE_STEMS
from qlora_studio.engine.exporters.comparison import ChatModel, record_chat
from qlora_studio.engine.exporters.protocol import Emit, ExportSource
from qlora_studio.engine.exporters.registry import find_exporter
from qlora_studio.engine.importance import measure_importance, save_importance
from qlora_studio.engine.manifest import find_damage
from qlora_studio.engine.weights import hash_cache, identify
from qlora_studio.home import Home
from qlora_studio.runs.folder import JobFolder, read_json
from qlora_studio.runs.records import read_record
from qlora_studio.runs.store import RunStore
from qlora_studio.worker.ask import IMPORTANCE, ask_artefact, find_source
from qlora_studio.worker.context import Context
from qlora_studio.worker.loaded_run import LoadedRun, open_run
from qlora_studio.worker.rows import held_out, tokenise
from qlora_studio.worker.staging import staged

RECORD = "chat-record"
"""The folder of the job in which the chat's side lies until the artefact was asked."""


def run(context: Context) -> ev.Event:
    request = context.request(ExportRequest)
    try:
        return export(context, request)
    except Stopped:
        return ev.Stopped()
    finally:
        shutil.rmtree(context.folder.path / RECORD, ignore_errors=True)
        (context.folder.path / IMPORTANCE).unlink(missing_ok=True)


def export(context: Context, request: ExportRequest) -> ev.Event:
    """Writes, checks and publishes. Raises prepare.Stopped where it is asked to stop before the target is there."""
    folder, target = JobFolder(request.run), request.to
    kind, exporter = find_export_kind(request.kind), find_exporter(request.kind)
    source = find_source(context, request)
    if damage := find_damage(source.adapter):
        raise StudioError(damage, "Train again, or choose another run.")
    check_identity(context, folder, source)
    emit = listening(context)
    with staged(target, context.folder.name) as stage:
        check_room(stage.files, exporter.size_bytes(source))
        record = ask_the_chat(context, request, emit) if kind.compares_with_chat else None
        if (importance := context.folder.path / IMPORTANCE).exists():
            source = replace(source, importance=importance)
        source.device.accelerator.release()  # what the chat held
        exporter.write(source, stage.files, emit)
        if kind.needs_base:  # else it is a copy, byte for byte
            write_model_card(context.home, folder, source, request, stage.files)
        if record is None:
            exporter.check(source, stage.files, None, emit)
        else:
            judge(ask_artefact(context, stage.files, record))
        if context.pending_request() == "stop":
            return ev.Stopped()
        stage.publish()
    files = sorted(path for path in target.rglob("*") if path.is_file())
    size = sum(path.stat().st_size for path in files)
    context.emit(ev.Exported(what=request.kind, path=str(target), bytes=size))
    names = tuple(path.relative_to(target).as_posix() for path in files)
    return ev.Finished(report=ExportReport(path=target, bytes=size, files=names))


def listening(context: Context) -> Emit:
    """Emits the job's events, adds how long a phase still takes, and looks for a request to stop at each advance."""
    began = time.monotonic()

    def emit(event: ev.Event) -> None:
        nonlocal began
        if isinstance(event, ev.PhaseEntered):
            began = time.monotonic()
        if isinstance(event, ev.Advanced) and event.done and event.seconds_left is None:
            left = (time.monotonic() - began) * (event.total - event.done) / event.done
            event = event.model_copy(update={"seconds_left": left})
        context.emit(event)
        if isinstance(event, ev.Advanced) and context.pending_request() == "stop":
            raise Stopped

    return emit


def check_identity(context: Context, folder: JobFolder, source: ExportSource) -> None:
    """Raises a StudioError where the base is not the one the run was trained on, as far as the run wrote that down."""
    file = folder.path / "fingerprint.json"
    kept = read_json(file).get("identity") if file.exists() else None
    if not isinstance(kept, dict) or source.base is None:
        return
    context.phase("comparing the base with that of the training")
    now = identify(
        source.base,
        None,
        None,
        hash_cache(context.home.cache),
        lambda done, total: context.emit(ev.Advanced(done=done, total=total, unit="bytes")),
    )
    before = Identity.model_validate(kept)
    if differences := Identity(base=before.base).differences(now):
        raise StudioError(
            differences[0], "Put the base back as it was, or train again on this one.", where=str(source.base)
        )


def check_room(stage: Path, need: int) -> None:
    """Raises a StudioError where the disk has no room for the artefact."""
    free = shutil.disk_usage(stage).free
    if free < need:
        raise StudioError(
            f"The export needs {need / GIB:.1f} GiB, and {free / GIB:.1f} GiB are free.",
            "Choose another disk.",
            where=str(stage.parent.parent),
        )


def ask_the_chat(context: Context, request: ExportRequest, emit: Emit) -> Path | None:
    """Keeps what the export is made by and compared with, of base and adapter as in the chat; the model is gone afterwards.

    That is how much each column counts, where that is wanted, in the job's folder, and what they answer and give the
    held-out rows; where that is kept, or None where there is nothing to compare.
    """
    if not request.prompts and not request.importance:
        return None
    folder = JobFolder(request.run)
    live, config = open_run(context, folder, request.checkpoint), context.config(folder)
    if request.importance:
        weigh_columns(context, live, config, emit)
    if not request.prompts:
        return None
    measures = request.held_out and bool(config.data.sources)
    rows = held_out(context, config, live.tokenizer).examples if measures else ()
    context.phase("answering with the adapter")
    record = record_chat(ChatModel(live.model, live.tokenizer, live.options), request.prompts, rows)
    place = context.folder.path / RECORD
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    record.save(place)
    return place


def weigh_columns(context: Context, live: LoadedRun, config: TrainConfig, emit: Emit) -> None:
    """Keeps an importance matrix of the run's training rows in the job's folder.

    Raises a StudioError where the run has no rows of its own, as an adapter from elsewhere.
    """
    if not config.data.sources:
        raise StudioError(
            "This run has no training rows here, so nothing shows which columns count.",
            "Export without an importance matrix.",
        )
    context.phase("reading training rows")
    rows = tokenise(context, config, live.tokenizer).train.examples
    context.phase("measuring which columns count")
    found = measure_importance(
        live.model, rows, lambda done, total: emit(ev.Advanced(done=done, total=total, unit="tokens"))
    )
    save_importance(found, context.folder.path / IMPORTANCE)


def write_model_card(home: Home, folder: JobFolder, source: ExportSource, request: ExportRequest, files: Path) -> None:
    """A card of our own beside the weights: data, settings, evaluation, licence, and how each program opens them."""
    options = ExportOptions(find_export_kind(request.kind), request.merge_into, request.gguf, request.parts)
    licences = tuple(path.name for path in sorted(files.iterdir()) if path.name.upper().startswith(LICENCE_STEMS))
    run = RunStore(folder.path.parent, home.cache).open(folder.name)
    facts = CardFacts(read_record(run), source.base_name, source.licence, licences)
    (files / "README.md").write_text(write_card(facts, options), encoding="utf-8")


def judge(checks: Sequence[ev.Checked]) -> None:
    """Raises a StudioError where a comparison says that the export has failed."""
    for check in checks:
        verdict = find_verdict(check)
        if verdict.kind == "bad":
            raise StudioError(verdict.sentence, verdict.hint)
