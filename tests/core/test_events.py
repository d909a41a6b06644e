"""What an event says of what nobody told it, and which events end a job."""

from __future__ import annotations

from qlora_studio.core import events as ev
from tests.core.frozen import stays


def left_out(event: ev.Event, *given: str) -> dict[str, object]:
    """The fields that were not given."""
    return event.model_dump(exclude=set(given))


def test_what_an_event_was_not_told_is_nothing():
    assert left_out(ev.JobStarted(job="train"), "job") == {"pid": 0}
    assert left_out(ev.Advanced(done=1), "done") == {"total": 0, "unit": "", "seconds_left": None}
    assert left_out(ev.ProbeMeasured(predicted_bytes=1, measured_bytes=2), "predicted_bytes", "measured_bytes") == {
        "tokens": 0, "row_tokens": 0, "trained_tokens": 0, "padded": False,
    }  # fmt: skip
    evaluation = ev.EvaluationLogged(step=1, loss=2.0, tokens=3, rows=4)
    assert left_out(evaluation, "step", "loss", "tokens", "rows") == {"adapter": True}
    retried = ev.StepRetriedSmaller(step=1, micro_batch_tokens=2, checkpointed_layers=3, reason="r")
    assert (retried.change, retried.tiled_mlp) == ("", False)
    assert left_out(ev.AdapterSaved(step=1), "step") == {"held_out": None}
    assert left_out(ev.Failed(message="m"), "message") == {"hint": ""}
    assert ev.Finished().report is None
    assert ev.Stopped().model_dump() == {"step": 0, "saved": "", "paused": False}


def test_a_check_found_nothing_of_what_nobody_looked_for():
    assert left_out(ev.Checked(what="merged"), "what") == {
        "same_top1": 0.0, "kl": 0.0, "identical_answers": 0, "answers": 0, "as_chatted": False, "precision": "16-bit",
        "positions": 0, "stops": 0, "stops_kept": 0, "base_loss": None, "chat_loss": None, "loss": None, "layers": 0,
        "layers_off": 0, "layer_off": "", "share_off": 1.0, "share_wanted": 1.0,
    }  # fmt: skip


def test_a_job_is_over_when_it_finished_was_stopped_or_failed():
    assert {kind.tag for kind in ev.KINDS.values() if kind.ends} == {"finished", "stopped", "failed"}
    assert len(ev.KINDS) == 20 and ev.Event.tag == ""


def test_what_happened_stays():
    assert all(map(stays, (ev.JobStarted(job="train"), ev.Stopped(), ev.Checked(what="merged"))))
