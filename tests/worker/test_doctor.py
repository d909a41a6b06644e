"""The job `doctor`: what only torch can tell, of as many cards as there are."""

from __future__ import annotations

import os

import pytest

from qlora_studio.core import events as ev
from qlora_studio.core.doctor import Check
from qlora_studio.core.jobs import DoctorReport, DoctorRequest
from qlora_studio.home import Home
from qlora_studio.runs.folder import create_job
from qlora_studio.worker import doctor
from qlora_studio.worker.context import Context


@pytest.mark.parametrize("cards", [[], ["one", "two"]])
def test_the_doctor_s_job_reports_what_torch_says_of_as_many_cards_as_there_are(tmp_path, monkeypatch, cards):
    check = Check(name="torch", state="ok", finding="Fine.")
    asked = []
    monkeypatch.setattr(doctor, "read_cards", lambda: cards)
    monkeypatch.setattr(doctor, "check_engine", lambda count: asked.append(count) or [check])
    events = []
    job = create_job(tmp_path / "jobs", "look", DoctorRequest())
    context = Context(job, events.append, os.getppid(), home=Home(tmp_path))
    assert doctor.run(context) == ev.Finished(report=DoctorReport(checks=(check,)))
    assert asked == [len(cards)] and events == [ev.PhaseEntered(phase="looking at torch and its kernels")]
