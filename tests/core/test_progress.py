"""The fold: what a late client sees equals what an early one saw."""

from __future__ import annotations

from qlora_studio.core import events as ev
from qlora_studio.core.events import KINDS, parse_event
from qlora_studio.core.jobs import TrainReport
from qlora_studio.core.progress import fold


def step(number: int) -> ev.StepLogged:
    return ev.StepLogged(
        step=number, total_steps=4, epoch=number / 4, loss=3.0 - number, learning_rate=1e-3, grad_norm=1.0, tokens=10,
        trained_tokens=5, tokens_per_second=100.0, peak_bytes=1000 * number,
    )  # fmt: skip


STORY = [
    ev.JobStarted(job="train", pid=7),
    ev.PhaseEntered(phase="training"),
    ev.EvaluationLogged(step=0, loss=4.0, tokens=9, rows=2, adapter=False),
    step(1),
    step(2),
    ev.EvaluationLogged(step=2, loss=2.0, tokens=9, rows=2),
    ev.StepRetriedSmaller(step=3, change="half", micro_batch_tokens=8, checkpointed_layers=0, reason="out of memory"),
    ev.Finished(report=TrainReport(steps=2, loss=1.0)),
]


def test_a_story_amounts_to_its_state():
    state = fold(STORY)
    assert (state.state, state.job, state.phase, state.step, state.total_steps) == (
        "finished",
        "train",
        "training",
        2,
        4,
    )
    assert state.losses == ((1, 2.0), (2, 1.0)) and state.evaluations == ((2, 2.0),) and state.base_loss == 4.0
    assert (
        state.peak_bytes == 2000
        and len(state.retries) == 1
        and state.report == TrainReport(steps=2, loss=1.0)
        and state.share == 1.0
    )


def test_a_run_that_begins_again_shows_each_step_once():
    again = [*STORY[:-1], ev.JobStarted(job="train"), step(1), ev.EvaluationLogged(step=2, loss=1.5, tokens=9, rows=2)]
    state = fold(again)
    assert state.losses == ((1, 2.0),) and state.evaluations == ((2, 1.5),) and state.state == "running"


def test_a_client_that_comes_late_sees_the_same():
    for cut in range(len(STORY)):
        assert fold(STORY[cut:], fold(STORY[:cut])) == fold(STORY)


def test_every_event_survives_its_journal_line():
    for event in STORY:
        assert parse_event(event.to_json()) == event
    assert len({kind.tag for kind in KINDS.values()}) == len(KINDS) == len(ev.Event.__subclasses__())


def test_a_run_that_goes_on_answers_its_sample_prompts_anew_from_there():
    from qlora_studio.core import events as ev
    from qlora_studio.core.progress import fold

    def sample(step: int, answer: str) -> ev.SampleWritten:
        return ev.SampleWritten(step=step, prompt="p", answer=answer, side="tuned")

    events = [sample(2, "a"), sample(4, "b"), sample(6, "c"), ev.Resumed(step=4), sample(4, "again"), sample(6, "new")]
    assert [(one.step, one.answer) for one in fold(events).samples] == [(2, "a"), (4, "again"), (6, "new")]
