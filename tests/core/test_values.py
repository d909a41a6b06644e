"""Small values that everyone leans on: accounts, problems, events, requests."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from qlora_studio.core import events as ev
from qlora_studio.core.chat import CHAT_MESSAGES, ChatRequest, ChatTurn, Sampling, StopAnswer
from qlora_studio.core.dataset import RowAccount
from qlora_studio.core.doctor import Check, diagnostics
from qlora_studio.core.errors import LawBroken, Problem, StudioError
from qlora_studio.core.events import parse_event
from qlora_studio.core.example import Example
from qlora_studio.core.jobs import DoctorReport, ExportRequest, JobRef, TrainRequest, parse_request
from qlora_studio.core.plan import MemoryEstimate, MemoryPart, MemoryPlan
from qlora_studio.core.progress import Progress, fold
from tests.core.test_progress import step


def test_an_account_adds_up_or_says_by_how_much_it_does_not():
    account = RowAccount(seen=10, imported=7, refused=2, dropped=1)
    assert account.check() is account and str(account) == "10 seen = 7 imported + 2 refused + 1 dropped"
    both = account.plus(RowAccount(seen=5, imported=2, refused=2, dropped=1, passed_over=("x",), notes=("n",)))
    assert both == RowAccount(seen=15, imported=9, refused=4, dropped=2, passed_over=("x",), notes=("n",))
    for wrong in ({"seen": 11}, {"imported": 8}, {"refused": 1}, {"dropped": 0}):
        with pytest.raises(LawBroken, match="does not add up"):
            account.model_copy(update=wrong).check("rows.jsonl")


def test_a_problem_says_where_what_and_what_to_do():
    assert str(Problem("Wrong.", "Mend it.", "a.jsonl:3", "output")) == "a.jsonl:3: field 'output': Wrong. Mend it."
    assert str(Problem("Wrong.")) == "Wrong." and str(Problem("Wrong.", where="a")) == "a: Wrong."


def test_an_error_carries_all_its_problems_in_order():
    error = StudioError.of([Problem("One.", "Do.", "a", "f"), Problem("Two.")])
    assert (
        str(error) == "a: field 'f': One. Do.\nTwo." and error.message == "a: field 'f': One." and error.hint == "Do."
    )
    assert [problem.message for problem in error.problems] == ["One.", "Two."]
    assert str(StudioError("Alone.", "Go.")) == "Alone. Go."


def test_a_request_survives_its_file_and_an_unknown_one_is_refused():
    request = ExportRequest(run=Path("/r"), to=Path("/t"), prompts=("a",))
    assert parse_request(request.model_dump(mode="json")) == request
    assert parse_request({"job": "train"}) == TrainRequest()
    for wrong in ({"job": "dance"}, {}, {"job": "export", "run": "/r"}, {"job": "train", "more": 1}):
        with pytest.raises(ValueError):
            parse_request(wrong)
    assert JobRef(Path("/runs/one")).name == "one"
    with pytest.raises(ValidationError):
        request.kind = "other"  # type: ignore[misc]


def test_a_finished_job_stays_finished_under_a_report_of_another_version():
    report = DoctorReport(checks=(Check(name="torch", state="ok", finding="Fine."),))
    whole = ev.Finished(report=report)
    assert parse_event(whole.to_json()) == whole
    assert parse_event({"event": "finished", "report": {"job": "dance"}}) == ev.Finished()
    assert parse_event({"event": "finished", "result": {"loss": 1}}) == ev.Finished()
    assert parse_event({"event": "step", "step": "x"}) is None and parse_event({}) is None


def test_what_an_earlier_version_called_a_lever_is_the_change():
    old = {
        "event": "retried",
        "step": 3,
        "lever": "half",
        "micro_batch_tokens": 8,
        "checkpointed_layers": 0,
        "reason": "x",
    }
    assert parse_event(old) == ev.StepRetriedSmaller(
        step=3, change="half", micro_batch_tokens=8, checkpointed_layers=0, reason="x"
    )


def test_what_an_earlier_version_wrote_of_a_plan_and_of_a_check_is_still_read():
    part = {"key": "weights", "label": "Weights", "bytes": 8}
    assert MemoryPart.model_validate({**part, "says": "in NF4"}) == MemoryPart.model_validate(
        {**part, "basis": "in NF4"}
    )
    assert Check.model_validate({"name": "torch", "state": "ok", "says": "Fine."}).finding == "Fine."


def test_every_event_leaves_its_mark():
    retried = ev.StepRetriedSmaller(step=1, change="x", micro_batch_tokens=1, checkpointed_layers=0, reason="r")
    probe = ev.ProbeMeasured(predicted_bytes=1, measured_bytes=2)
    checked = ev.Checked(what="w", same_top1=1, kl=0, identical_answers=1, answers=1)
    sample = ev.SampleWritten(step=0, prompt="p", answer="a", side="base")
    exported = ev.Exported(what="adapter", path="/x", bytes=3)
    story = [
        ev.JobStarted(job="train"), ev.Noted(text="n"), probe, retried, ev.UpdateSkipped(step=1, reason="nan"), sample,
        checked, exported, ev.CheckpointSaved(step=4, path="c"), ev.PhaseEntered(phase="p"),
        ev.Advanced(done=3, total=4, unit="rows", seconds_left=9.0),
    ]  # fmt: skip
    state = fold(story)
    assert (state.notes, state.probe, state.retries, state.samples) == (("n",), probe, (retried,), (sample,))
    assert (state.skipped, state.checks, state.exported) == (
        (ev.UpdateSkipped(step=1, reason="nan"),), (checked,), (exported,),
    )  # fmt: skip
    assert state.checkpoint == ev.CheckpointSaved(step=4, path="c")
    assert (state.phase, state.done, state.total, state.unit, state.share) == ("p", 3, 4, "rows", 0.75)
    assert state.phase_seconds_left == 9.0
    assert fold([ev.PhaseEntered(phase="q")], state).phase_seconds_left is None
    failed = fold([ev.Failed(message="m", hint="h")], state)
    assert (failed.state, failed.message, failed.hint, failed.ended) == ("failed", "m", "h", True)
    again = fold([ev.JobStarted(job="train")], failed)
    assert (again.state, again.message, again.hint, again.ended) == ("running", "", "", False)
    stopped = fold([step(2), ev.Stopped(step=1)])
    assert (stopped.state, stopped.step, stopped.share) == ("stopped", 2, 0.5)
    resumed = fold([step(1), step(2), step(3), ev.Resumed(step=1)])
    assert resumed.step == 1 and list(resumed.losses) == [(1, 2.0)]
    assert Progress().share == 0.0 and fold([ev.Advanced(done=9, total=4)]).share == 1.0


def test_chat_messages_are_told_apart():
    request = ChatRequest(turns=(ChatTurn(role="user", content="Hi"),), side="base", sampling=Sampling(seed=1))
    for message in (request, StopAnswer()):
        assert CHAT_MESSAGES.validate_json(message.model_dump_json()) == message
    for wrong in ("{}", '{"kind": "go"}', '{"kind": "stop", "more": 1}'):
        with pytest.raises(ValidationError):
            CHAT_MESSAGES.validate_json(wrong)


def test_labels_stand_where_the_spans_are_and_the_first_token_counts_for_nothing():
    example = Example((7, 8, 9, 10), ((0, 2), (3, 4)))
    assert example.labels() == [7, 8, -100, 10] and example.trained_tokens == 2
    assert Example((1, 2), ((0, 1),)).trained_tokens == 0


def test_a_bill_adds_up():
    parts = tuple(MemoryPart(key=key, label=key, bytes=size) for key, size in (("a", 5), ("context", 7), ("slack", 2)))
    bill = MemoryEstimate(parts=parts)
    assert (bill.total_bytes, bill.allocator_bytes, bill.part_bytes("context"), bill.part_bytes("z")) == (14, 5, 7, 0)
    plan = MemoryPlan(
        device="cpu", budget_bytes=14, estimate=bill, micro_batch_tokens=1, checkpointed_layers=0, layers=1,
        adapter_precision="fp32", optimizer="adamw",
    )  # fmt: skip
    assert plan.fits and plan.spare_bytes == 0 and not plan.model_copy(update={"budget_bytes": 13}).fits


def test_diagnostics_hide_folders_longest_first():
    checks = [Check(name="Disk", state="bad", finding="/home/me/data is full.", remedy="Free /home/me.")]
    assert diagnostics(checks, "/home/me", "/home/me/data", "") == "[bad] Disk: ~ is full.\n      Free ~."
