"""The process that asks an export: heard to its end, stopped when asked, and never taken for an answer when it dies."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import pytest

from qlora_studio.core import events as ev
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import ExportRequest
from qlora_studio.data.sets.prepare import Stopped
from qlora_studio.home import Home
from qlora_studio.runs.folder import create_job
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
