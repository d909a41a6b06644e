"""What a job is asked where nobody says more, the limits of what it can be asked, and what a report leaves open."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from qlora_studio.core import jobs
from qlora_studio.core.chat import Sampling
from tests.core.frozen import stays

RUN, TO = Path("/runs/one"), Path("/exports/one")


def test_what_nobody_says_of_a_job_is_this():
    assert jobs.TokeniseRequest(datasets=RUN).previews == 20
    evaluate = jobs.EvaluateRequest(run=RUN)
    assert (evaluate.prompts, evaluate.sampling, evaluate.checkpoint) == ((), Sampling(), "")
    assert jobs.ExportRequest(run=RUN, to=TO).model_dump(exclude={"run", "to"}) == {
        "job": "export", "kind": "merged", "merge_into": "original", "gguf": "Q4_K_M", "parts": (), "prompts": (),
        "checkpoint": "", "held_out": True, "importance": False,
    }  # fmt: skip
    assert jobs.PushRequest(export=TO, to="hub", name="x").public is False
    assert jobs.ChatJobRequest(run=RUN).checkpoint == jobs.CombinePart(run=RUN, weight=1).checkpoint == ""
    resolve = jobs.ResolveRequest(base="b")
    assert (resolve.revision, resolve.again) == (None, False)


def test_what_a_job_is_asked_has_limits():
    parts = [{"run": RUN, "weight": weight} for weight in (1.0, -0.5)]
    assert jobs.TokeniseRequest(datasets=RUN, previews=0).previews == 0
    assert len(jobs.CombineRequest(parts=parts).parts) == 2 and jobs.CombineRequest(parts=parts).how == "cat"
    assert jobs.PushRequest(export=TO, to="hub", name="x" * 200).name == "x" * 200
    assert jobs.RateRequest(steps=1).steps == 1
    for kind, values in (
        (jobs.TokeniseRequest, {"datasets": RUN, "previews": -1}),
        (jobs.CombineRequest, {"parts": parts[:1]}),
        (jobs.CombinePart, {"run": RUN, "weight": float("inf")}),
        (jobs.CombinePart, {"run": RUN, "weight": float("nan")}),
        (jobs.PushRequest, {"export": TO, "to": "hub", "name": ""}),
        (jobs.PushRequest, {"export": TO, "to": "hub", "name": "x" * 201}),
        (jobs.RateRequest, {"steps": 0}),
    ):
        with pytest.raises(ValidationError):
            kind(**values)


def test_what_a_report_does_not_know_is_nothing():
    assert jobs.TrainReport(steps=3).model_dump(exclude={"steps"}) == {
        "job": "train", "loss": None, "held_out_before": None, "held_out_after": None, "best_step": None,
        "best_held_out": None, "stopped_early": False,
    }  # fmt: skip
    assert jobs.ExportReport(path=TO, bytes=1).files == ()
    report = jobs.EvaluateReport(rows=0)
    assert (report.base_loss, report.tuned_loss) == (None, None)


def test_requests_and_reports_stay_as_they_were_made():
    assert all(
        map(stays, (jobs.TrainRequest(), jobs.RateRequest(steps=1), jobs.TrainReport(steps=1), jobs.ChatReport()))
    )


def points(*rates: float) -> tuple[jobs.RatePoint, ...]:
    return tuple(jobs.RatePoint(rate=rate) for rate in rates)


@pytest.mark.parametrize(
    ("rate", "sentence"),
    [
        (None, "After 20 steps each from the same start no rate is better than the base. Look at the rows, or train more steps."),
        (1e-4, "After 20 steps each from the same start, 0.0001 is the lowest rate that does as well as the best. It is the lowest that was tried: a lower one may be better still."),
        (2e-4, "After 20 steps each from the same start, 0.0002 is the lowest rate that does as well as the best."),
        (4e-4, "After 20 steps each from the same start, 0.0004 is the lowest rate that does as well as the best. It is the highest that was tried: a higher one may be better still."),
    ],
)  # fmt: skip
def test_a_rate_at_the_edge_of_what_was_tried_is_said_to_be(rate, sentence):
    report = jobs.RateReport(steps=20, points=points(1e-4, 2e-4, 4e-4), held_out=False, rate=rate)
    assert report.sentence == sentence
