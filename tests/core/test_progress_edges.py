"""What the fold makes of one event more, and the state that locks and requests add to it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qlora_studio.core import events as ev
from qlora_studio.core.jobs import TrainReport
from qlora_studio.core.progress import AT_WORK, ENDED, JobView, Progress, find_state, fold
from qlora_studio.core.series import Series


def step(number: int, tokens: int = 50, speed: float = 25.0, peak: int = 7) -> ev.StepLogged:
    return ev.StepLogged(
        step=number, total_steps=10, epoch=0.5, loss=1.0 * number, learning_rate=1e-3, grad_norm=1.0, tokens=tokens,
        trained_tokens=5, tokens_per_second=speed, peak_bytes=peak,
    )  # fmt: skip


def test_tokens_and_seconds_are_summed_up_to_each_step():
    state = fold([step(1, 50, 25.0), step(2, 30, 10.0), step(3, 40, 40.0)])
    assert state.tokens == ((1, 50.0), (2, 80.0), (3, 120.0))
    assert state.seconds == ((1, 2.0), (2, 5.0), (3, 6.0))
    assert state.mean_tokens_per_second == 20.0


def test_a_step_that_is_computed_anew_counts_once():
    state = fold([step(1), step(2, 30, 10.0), step(3), ev.Resumed(step=1), step(2, 10, 5.0)])
    assert state.tokens == ((1, 50.0), (2, 60.0)) and state.seconds == ((1, 2.0), (2, 4.0))
    assert state.losses == ((1, 1.0), (2, 2.0))


def test_a_speed_of_nothing_is_no_division_by_nothing():
    ((at, seconds),) = fold([step(1, 1, 0.0)]).seconds
    assert (at, seconds) == (1, pytest.approx(1e9))


def test_before_any_training_there_is_no_speed():
    assert Progress().mean_tokens_per_second is None
    assert fold([step(1, 0)]).mean_tokens_per_second is None


def test_the_peak_is_the_highest_of_all_steps():
    assert fold([step(1, peak=9), step(2, peak=4)]).peak_bytes == 9


def test_one_step_leaves_all_it_says():
    last = step(4)
    assert fold([last]) == Progress(
        step=4, total_steps=10, last=last, peak_bytes=7, losses=Series([(4, 4.0)]), tokens=Series([(4, 50.0)]),
        seconds=Series([(4, 2.0)]),
    )  # fmt: skip


def test_a_phase_begins_empty():
    assert fold([ev.Advanced(done=3, total=4, unit="rows"), ev.PhaseEntered(phase="p")]) == Progress(phase="p")


def test_a_run_that_gets_more_epochs_is_stopped_and_has_no_report():
    ended = fold([ev.AdapterSaved(step=4), ev.Finished(report=TrainReport(steps=4, loss=1.0))])
    assert (ended.state, ended.adapter_step) == ("finished", 4)
    more = fold([ev.Extended(epochs=2.0)], ended)
    assert more == replace(ended, state="stopped", report=None)


def test_a_sample_of_the_step_gone_back_to_stays():
    samples = [ev.SampleWritten(step=number, prompt="p", answer="a", side="tuned") for number in (3, 4, 5)]
    assert fold([*samples, ev.Resumed(step=4)]).samples == tuple(samples[:2])


def test_a_pause_is_no_stop_and_a_stop_never_takes_steps_back():
    assert fold([step(3), ev.Stopped(step=2, paused=True)]).state == "paused"
    assert fold([step(3), ev.Stopped(step=5)]).step == 5
    assert fold([step(3), ev.Stopped(step=2)]).step == 3


@pytest.mark.parametrize(
    ("state", "share"),
    [
        (Progress(), 0.0),
        (Progress(done=1, total=4), 0.25),
        (Progress(done=9, total=4), 1.0),
        (Progress(done=1, total=4, step=3, total_steps=4), 0.75),
        (Progress(state="finished", step=1, total_steps=4), 1.0),
        (Progress(state="stopped", step=1, total_steps=4), 0.25),
    ],
)
def test_how_much_is_done(state, share):
    assert state.share == share


STATES = ("starting", "running", "finished", "stopped", "paused", "failed")


@pytest.mark.parametrize("state", STATES)
def test_what_has_ended_says_so(state):
    assert Progress(state=state).ended == (state in ENDED) == (state not in ("starting", "running"))


@pytest.mark.parametrize("state", [*STATES, "queued", "stopping", "interrupted"])
def test_a_job_is_at_work_from_its_start_to_its_end(state):
    assert JobView(state, Progress()).at_work == (state in AT_WORK) == (state in ("starting", "running", "stopping"))


@pytest.mark.parametrize(
    ("known", "alive", "seen", "stop", "queued", "state"),
    [
        ("starting", False, False, False, False, "starting"),
        ("starting", False, True, False, False, "interrupted"),
        ("starting", True, True, False, False, "starting"),
        ("starting", True, True, True, False, "stopping"),
        ("starting", False, False, False, True, "queued"),
        ("running", True, True, False, False, "running"),
        ("running", True, True, True, False, "stopping"),
        ("running", False, True, True, False, "interrupted"),
        ("running", False, True, False, True, "queued"),
        ("running", True, True, False, True, "running"),
        ("finished", False, True, True, True, "finished"),
        ("finished", True, True, True, False, "finished"),
        ("stopped", False, True, False, False, "stopped"),
        ("stopped", False, True, False, True, "queued"),
        ("paused", True, True, True, False, "paused"),
        ("failed", False, True, True, False, "failed"),
    ],
)
def test_the_state_is_what_events_locks_and_requests_say_together(known, alive, seen, stop, queued, state):
    progress = Progress(state=known)
    assert find_state(progress, alive=alive, seen=seen, stop_requested=stop, queued=queued) == state


def test_a_job_that_has_said_nothing_is_nowhere():
    assert Progress() == Progress("starting", "", "", 0, 0, "", None, 0, 0)
    assert (Progress().peak_bytes, Progress().base_loss, Progress().notes) == (0, None, ())
