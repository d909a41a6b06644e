"""The job `resolve`: what is known of a base, found out where nobody has looked yet."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qlora_studio.core import events as ev
from qlora_studio.core.bases import BaseRef, FailedBase, ResolvedBase
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import ResolveReport, ResolveRequest
from qlora_studio.home import Home
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES
from qlora_studio.runs.folder import create_job
from qlora_studio.worker import resolve
from qlora_studio.worker.context import Context


def context_of(tmp_path, request):
    events = []
    made = Context(create_job(tmp_path / "jobs", "look", request), events.append, os.getppid(), home=Home(tmp_path))
    made.events = events
    return made


FAILED = FailedBase(name="org/name", stage="hub", message="There is no such model.", hint="Look for another.")


def test_looking_a_base_up_says_what_is_done_and_a_failure_is_an_answer(tmp_path, monkeypatch):
    asked = []

    def find(base, home, measure, announce, **more):
        asked.append((base, home, more))
        announce("asking the hub")
        return FAILED

    monkeypatch.setattr(resolve, "resolve", find)
    context = context_of(tmp_path, ResolveRequest(base="org/name", revision="v2", again=True))
    assert resolve.run(context) == ev.Finished(report=ResolveReport(facts=FAILED))
    assert asked == [(BaseRef("org/name", "v2"), Home(tmp_path), {"again": True})]
    assert context.events == [ev.PhaseEntered(phase="asking the hub")]
    with pytest.raises(StudioError) as refused:
        resolve.resolve_base(context, BaseRef("org/name"))
    assert refused.value.problems == (FAILED.problem,)
    assert asked[1:] == [(BaseRef("org/name"), Home(tmp_path), {})], "what is kept is not forgotten for a plan"


def test_a_family_that_no_formula_knows_is_measured_by_a_dry_run(tmp_path, monkeypatch):
    shape = REFERENCE_SHAPES["SmolLM2-135M"]
    monkeypatch.setattr("qlora_studio.engine.dry_run.measure_folder", lambda folder: f"shape of {folder}")

    def find(base, home, measure, announce):
        return ResolvedBase(name=measure(Path("/model")), shape=shape, weights="on_disk")

    monkeypatch.setattr(resolve, "resolve", find)
    found = resolve.resolve_base(context_of(tmp_path, ResolveRequest(base="x")), BaseRef("x"))
    assert (found.name, found.shape) == ("shape of /model", shape)
