"""A fresh process that asks an export: `python -m qlora_studio.worker.ask JOB FILES RECORD`.

It is told where the files are and what the chat said, and says what it finds as events, a line of JSON each, on standard
output. What it says last is `finished` or why the artefact is refused.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path

from qlora_studio.bases import read_base_files
from qlora_studio.core import events as ev
from qlora_studio.core.errors import StudioError
from qlora_studio.core.exports import find_export_kind
from qlora_studio.core.jobs import ExportRequest
from qlora_studio.data.sets.prepare import Stopped
from qlora_studio.engine.exporters.comparison import ChatRecord
from qlora_studio.engine.exporters.protocol import Emit, ExportSource
from qlora_studio.engine.exporters.registry import find_exporter
from qlora_studio.engine.load import choose_device
from qlora_studio.runs.folder import JobFolder
from qlora_studio.worker.context import Context
from qlora_studio.worker.loaded_run import chosen_adapter, compute_of

KILLED = -9
IMPORTANCE = "importance.safetensors"
"""In the job's folder while it works: how much each column counts."""
POLL_SECONDS = 0.2


def ask_artefact(context: Context, files: Path, record: Path) -> list[ev.Checked]:
    """Runs the exporter's check on these files in a fresh process, and passes on what it says; its comparisons.

    Raises a StudioError where the artefact is refused, and prepare.Stopped where the job is asked to stop.
    """
    return listen(
        context, [sys.executable, "-m", "qlora_studio.worker.ask", *map(str, (context.folder.path, files, record))]
    )


def listen(context: Context, command: Sequence[str]) -> list[ev.Checked]:
    """Runs a process that says what it finds, as `ask_artefact` describes."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, encoding="utf-8")
    stopped = threading.Event()
    watcher = threading.Thread(target=_watch, args=(context, process, stopped), daemon=True)
    watcher.start()
    checks: list[ev.Checked] = []
    last: ev.Event | None = None
    assert process.stdout is not None
    try:
        for line in process.stdout:
            last = ev.parse_event(json.loads(line))
            if isinstance(last, ev.Checked):
                checks.append(last)
            if last is not None and not last.ends:
                context.emit(last)
        code = process.wait()
    finally:
        process.kill()  # nobody hears the rest of one that could not be understood
    watcher.join()
    if stopped.is_set():
        raise Stopped
    if isinstance(last, ev.Failed):
        raise StudioError(last.message, last.hint)
    if code or not isinstance(last, ev.Finished):
        how = "was ended by the system, probably for want of memory" if code == KILLED else f"ended with code {code}"
        raise StudioError(
            f"The export could not be checked: the process that loads it {how}.",
            "Close other programs and export again, or export without the comparison.",
        )
    return checks


def _watch(context: Context, process: subprocess.Popen[str], stopped: threading.Event) -> None:
    """Ends the process as soon as the job is asked to stop."""
    while process.poll() is None:
        if context.pending_request() == "stop":
            stopped.set()
            process.kill()
            return
        try:
            process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            continue


def main(arguments: list[str]) -> int:
    """Asks the artefact; exit code 0 where it was asked and 1 where it is refused."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print goes to the log

    def emit(event: ev.Event) -> None:
        out.write(json.dumps(event.to_json()) + "\n")
        out.flush()

    try:
        job, files, record = map(Path, arguments[1:4])
        check(JobFolder(job), files, record, emit)
    except StudioError as error:
        emit(ev.Failed(message=error.message, hint=error.hint))
        return 1
    except Exception as error:
        traceback.print_exc()
        emit(ev.Failed(message=f"The export cannot be loaded: {type(error).__name__}: {error}"))
        return 1
    emit(ev.Finished())
    return 0


def check(job: JobFolder, files: Path, record: Path, emit: Emit) -> None:
    """The check of the exporter that this job has chosen."""
    context = Context(job, emit, os.getppid())
    request = context.request(ExportRequest)
    source = find_source(context, request)
    source.device.accelerator.prepare()
    find_exporter(request.kind).check(source, files, ChatRecord.load(record), emit)


def find_source(context: Context, request: ExportRequest) -> ExportSource:
    """The run's files with the chosen weights, its names, and its base fetched where this kind needs it."""
    folder = JobFolder(request.run)
    config = context.config(folder)
    base = context.fetch_base(config) if find_export_kind(request.kind).needs_base else None
    return ExportSource(
        adapter=chosen_adapter(context, folder, request.checkpoint),
        base=base.folder if base else None,
        device=choose_device(compute_of(folder, config)),
        merge_into=request.merge_into,
        gguf=request.gguf,
        importance=importance if (importance := context.folder.path / IMPORTANCE).exists() else None,
        parts=request.parts,
        name=folder.name,
        base_name=base.label if base else "",
        licence=read_base_files(base.folder).licence if base else "",
        context_tokens=config.data.max_length,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv))
