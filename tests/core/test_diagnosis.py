"""What is said of a curve: each pattern is named once it is there, and a run that learns is never accused."""

from __future__ import annotations

import math
import random

import pytest

from qlora_studio.core import events as ev
from qlora_studio.core.diagnosis import diagnose
from qlora_studio.core.progress import fold


def step(number: int, loss: float) -> ev.StepLogged:
    return ev.StepLogged(
        step=number, total_steps=500, epoch=0, loss=loss, learning_rate=1e-4, grad_norm=1, tokens=9, trained_tokens=9,
        tokens_per_second=1, peak_bytes=1,
    )  # fmt: skip


def measured(number: int, loss: float, *, adapter: bool = True) -> ev.EvaluationLogged:
    return ev.EvaluationLogged(step=number, loss=loss, tokens=9, rows=1, adapter=adapter)


def messages(losses=(), evaluations=(), base=None, more=()) -> list[str]:
    events = [ev.JobStarted(job="train")]
    events += [measured(0, base, adapter=False)] if base is not None else []
    events += [step(number, loss) for number, loss in enumerate(losses, 1)]
    events += [measured(number, loss) for number, loss in evaluations]
    return [problem.message for problem in diagnose(fold([*events, *more]))]


def falling(count: int, seed: int = 0) -> list[float]:
    """A curve as SmolLM2 gives it on a small set: 2.5 falling to 1.2, with the noise of small batches."""
    rng = random.Random(seed)
    return [1.2 + 1.3 * math.exp(-number / 60) + rng.gauss(0, 0.15) for number in range(count)]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("count", [3, 40, 61, 500])
def test_a_run_that_learns_is_never_accused(seed, count):
    assert messages(falling(count, seed), [(20, 1.9), (40, 1.7), (60, 1.705)], 2.2) == []


def test_a_run_that_overfits_is_told_where_it_was_best_and_what_its_adapter_is():
    curve = [(32, 1.656), (64, 1.8), (160, 2.126)]
    assert messages(falling(160), curve, 1.891) == [
        "The run overfits: its held-out loss was 1.6560 at step 32 and 2.1260 at step 160."
    ]
    ended = [ev.AdapterSaved(step=32, held_out=1.656), ev.Finished()]
    (message,) = messages(falling(160), curve, 1.891, ended)
    assert message.endswith("at step 160. The adapter is that of step 32.")


def test_one_evaluation_above_the_best_is_no_verdict_while_the_run_goes_on():
    """As measured: 4.8176, 4.8859, 4.7918 and falling on."""
    assert messages(falling(30), [(4, 4.8176), (6, 4.8859)], 5.5493) == []
    (message,) = messages(falling(30), [(4, 4.8176), (6, 4.8859), (8, 4.9)], 5.5493)
    assert message.startswith("The run overfits")


def test_an_adapter_that_is_not_better_than_its_base_is_said_so():
    words = "The adapter is not better than its base: its best held-out loss is 2.0000, the base's is 1.8900."
    assert messages(falling(100), [(10, 2.0), (20, 2.01)], 1.89) == [words]
    assert messages(falling(100), [(10, 2.0)], 1.89) == [], "one early measurement is no verdict"
    assert messages(falling(100), [(10, 2.0)], 1.89, [ev.Finished()]) == [words], "at the end it is"


def test_an_explosion_is_said_with_both_numbers():
    (message,) = messages([*falling(200), *[6.0] * 25])
    assert message.startswith("The training loss exploded: it was down to 1.") and "is now 6.000" in message
    assert messages([*falling(200), *[math.nan] * 25])[0].endswith("is now nan.")


def test_a_loss_of_exactly_zero_is_an_alarm():
    assert messages([1.2, 0.0, 0.0]) == ["The training loss was exactly 0 at step 2, which no real text gives."]


def test_a_curve_that_does_not_move_is_said_so():
    rng = random.Random(1)
    flat = [2.0 + rng.gauss(0, 0.02) for _ in range(100)]
    (message,) = messages(flat)
    assert message.startswith("The training loss has hardly moved in 100 steps: 2.0")
    assert messages(flat[:59]) == [], "too early to say"


def test_other_jobs_have_no_curve():
    assert diagnose(fold([ev.JobStarted(job="evaluate"), measured(0, 1.0, adapter=False), measured(0, 2.0)])) == []
