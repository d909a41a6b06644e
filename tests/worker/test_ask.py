"""The process that asks an export: heard to its end, stopped when asked, and never taken for an answer when it dies."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from qlora_studio.core import events as ev
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import ExportRequest
from qlora_studio.data.sets.prepare import Stopped
from qlora_studio.engine.checkpoints import ADAPTER_FILES
from qlora_studio.engine.manifest import MANIFEST, find_damage
from qlora_studio.home import Home
from qlora_studio.runs.folder import create_job
from qlora_studio.worker import ask
from qlora_studio.worker.ask import listen
from qlora_studio.worker.context import Context
from qlora_studio.worker.export import judge

CHECKED = ev.Checked(what="merged model", kl=0.001)


@pytest.fixture
def context(tmp_path):
    request = ExportRequest(run=tmp_path, to=tmp_path / "out")
    events: list[Any] = []
    made = Context(create_job(tmp_path / "jobs", "one", request), events.append, os.getppid(), home=Home(tmp_path))
    made.events = events  # type: ignore[attr-defined]
    return made


def saying(*events: ev.Event, then: str = "") -> list[str]:
    lines = [json.dumps(event.to_json()) for event in events]
    return [sys.executable, "-c", f"import os, sys, time\nfor line in {lines!r}: print(line, flush=True)\n{then}"]


def test_what_it_says_is_passed_on_and_its_end_is_not(context):
    phase = ev.PhaseEntered(phase="asking")
    assert listen(context, saying(phase, CHECKED, ev.Finished())) == [CHECKED]
    assert context.events == [phase, CHECKED]


def test_an_artefact_that_is_refused_is_refused_in_the_same_words(context):
    refused = ev.Failed(message="The exported model's chat template is not that of training.", hint="Report this.")
    with pytest.raises(StudioError, match=r"chat template is not that of training\. Report this\."):
        listen(context, saying(refused, then="sys.exit(1)"))


def test_a_process_that_cannot_be_understood_does_not_live_on(context):
    number = context.folder.path / "number"
    then = f"open({str(number)!r}, 'w').write(str(os.getpid()))\nprint('no event', flush=True)\ntime.sleep(600)"
    with pytest.raises(ValueError, match="Expecting value"):
        listen(context, saying(then=then))
    for _ in range(500):  # what was killed is gone when its parent has looked
        if not [one for one in psutil.Process().children() if one.pid == int(number.read_text())]:
            break
        time.sleep(0.01)
    else:
        pytest.fail("the process lives on")


@pytest.mark.parametrize("then", ["os.kill(os.getpid(), 9)", "sys.exit(3)", ""])
def test_a_process_that_dies_has_checked_nothing(context, then):
    with pytest.raises(StudioError, match="could not be checked: the process that loads it"):
        listen(context, saying(CHECKED, then=then))


def test_a_stop_ends_it(context):
    context.stopped = True
    with pytest.raises(Stopped):
        listen(context, saying(CHECKED, then="time.sleep(60)"))


def test_a_failed_comparison_is_a_failed_export_and_a_warning_is_not():
    judge([CHECKED, ev.Checked(what="merged model, original", kl=0.2)])
    with pytest.raises(StudioError, match=r"does not answer as the chat did: KL 0\.200 nats"):
        judge([CHECKED, ev.Checked(what="merged model, as chatted", kl=0.2, as_chatted=True)])


def run_main(monkeypatch, outcome):
    """`main` with a check of its own: its exit code, and what it wrote on a standard output of its own."""
    given = []

    def check(job, files, record, emit):
        given.append((job.path, files, record))
        emit(CHECKED)
        if outcome is not None:
            raise outcome

    out = io.StringIO()
    copies = []
    monkeypatch.setattr(ask, "check", check)
    monkeypatch.setattr(ask, "os", SimpleNamespace(
        dup=lambda number: number + 40, fdopen=lambda number, mode, encoding: copies.append((number, mode)) or out,
        dup2=lambda *numbers: copies.append(numbers),
    ))  # fmt: skip
    code = ask.main(["ask", "/job", "/files", "/record", "/more"])
    assert given == [(Path("/job"), Path("/files"), Path("/record"))] and copies == [(41, "w"), (2, 1)]
    events = [ev.parse_event(json.loads(line)) for line in out.getvalue().splitlines()]
    assert events[0] == CHECKED
    return code, events[1:]


def test_the_process_says_how_it_ended_last(monkeypatch, capsys):
    assert run_main(monkeypatch, None) == (0, [ev.Finished()])
    refused = ev.Failed(message="It is broken.", hint="Report this.")
    assert run_main(monkeypatch, StudioError("It is broken.", "Report this.")) == (1, [refused])
    assert capsys.readouterr().err == ""
    surprise = ev.Failed(message="The export cannot be loaded: ValueError: odd")
    assert run_main(monkeypatch, ValueError("odd")) == (1, [surprise])
    assert "Traceback" in capsys.readouterr().err


def test_the_process_is_given_the_job_the_files_and_the_record(context, monkeypatch):
    given = []
    monkeypatch.setattr(ask, "listen", lambda *arguments: given.append(arguments) or [CHECKED])
    assert ask.ask_artefact(context, Path("/files"), Path("/record")) == [CHECKED]
    job = str(context.folder.path)
    assert given == [(context, [sys.executable, "-m", "qlora_studio.worker.ask", job, "/files", "/record"])]


def test_the_exporter_of_the_job_checks_the_files_against_the_record(context, monkeypatch):
    order = []
    source = SimpleNamespace(
        device=SimpleNamespace(accelerator=SimpleNamespace(prepare=lambda: order.append("prepare")))
    )
    exporter = SimpleNamespace(check=lambda *given: order.append(given))
    monkeypatch.setattr(ask, "find_source", lambda made, request: order.append((made.folder, request.kind)) or source)
    monkeypatch.setattr(ask, "find_exporter", lambda kind: order.append(kind) or exporter)
    monkeypatch.setattr(ask.ChatRecord, "load", lambda place: f"record of {place}")
    emit = object()
    ask.check(context.folder, Path("/files"), Path("/record"), emit)
    assert order == [
        (context.folder, "merged"), "prepare", "merged", (source, Path("/files"), "record of /record", emit),
    ]  # fmt: skip


def test_an_export_knows_its_base_its_weights_and_its_names(trained):
    run = trained.home.runs / "one"
    (trained.home.models / "tiny" / "README.md").write_text("---\nlicense: mit\n---\n")
    request = ExportRequest(
        run=run, to=trained.home.root / "out", kind="gguf", gguf="Q6_K", merge_into="as_chatted", checkpoint="step-2"
    )
    done = trained.context(request)
    source = ask.find_source(done.context, request)
    assert (source.name, source.base, source.base_name) == ("one", trained.home.models / "tiny", "tiny")
    assert (source.gguf, source.merge_into, source.importance, source.context_tokens) == (
        "Q6_K",
        "as_chatted",
        None,
        256,
    )
    assert source.licence == "mit" and str(source.device.dtype) == "torch.float32"
    made = done.folder.path / "adapter"
    assert source.adapter == made and find_damage(made) == ""
    assert {path.name for path in made.iterdir()} == {*ADAPTER_FILES, MANIFEST}
    weights = run / "checkpoints" / "step-000002" / "adapter_model.safetensors"
    assert (made / "adapter_model.safetensors").read_bytes() == weights.read_bytes()
    before = (made / MANIFEST).stat().st_ino
    (done.folder.path / ask.IMPORTANCE).touch()
    source = ask.find_source(done.context, request)
    assert source.importance == done.folder.path / ask.IMPORTANCE
    assert (made / MANIFEST).stat().st_ino == before, "it is made once"
    (made / "adapter_config.json").write_text("{")
    assert find_damage(ask.find_source(done.context, request).adapter) == "", "and again where it is damaged"
    weights.write_bytes(b"")
    (made / "adapter_config.json").write_text("{")
    with pytest.raises(StudioError, match="Choose another checkpoint"):
        ask.find_source(done.context, request)
    alone = ask.find_source(done.context, request.model_copy(update={"kind": "adapter", "checkpoint": ""}))
    assert (alone.adapter, alone.base, alone.base_name, alone.licence) == (run / "adapter", None, "", "")


def test_a_process_that_says_what_is_no_event_does_not_keep_this_one_from_ending(context):
    before = set(threading.enumerate())
    with pytest.raises(ValueError, match="Expecting value"):
        listen(context, [sys.executable, "-c", "import time; print('odd', flush=True); time.sleep(60)"])
    (watcher,) = set(threading.enumerate()) - before
    assert watcher.daemon, "what it watches may go on for long"
    context.stopped = True
    watcher.join(10)
    assert not watcher.is_alive()
