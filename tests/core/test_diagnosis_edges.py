"""From where on, to the step and the nat, a curve is called what it is."""

from __future__ import annotations

import pytest

from qlora_studio.core import events as ev
from qlora_studio.core.diagnosis import diagnose
from qlora_studio.core.progress import fold
from tests.core.test_diagnosis import measured, messages, step


def exploded(losses) -> bool:
    return any("exploded" in message for message in messages(losses))


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (1.0, 1.5, True),  # half more, and half a nat
        (1.0, 1.4375, False),
        (2.0, 2.75, False),  # half a nat and more, but not half more
        (0.5, 0.875, False),  # more than half more, but not half a nat
        (0.5, 1.0, True),
        (2.0, 3.0, True),
    ],
)
def test_a_loss_explodes_from_half_more_and_half_a_nat_on(low, high, found):
    assert exploded([low] * 20 + [high] * 20) == found


@pytest.mark.parametrize(("steps", "found"), [(39, False), (40, True)])
def test_an_explosion_takes_two_windows(steps, found):
    assert exploded([1.0] * 20 + [9.0] * (steps - 20)) == found


def test_the_lowest_stretch_is_looked_for_at_each_half_window_and_in_the_beginning():
    losses = [3.0] * 10 + [1.0] * 20 + [3.0] * 20
    assert messages(losses) == ["The training loss exploded: it was down to 1.000 and is now 3.000."]
    assert messages([1.0] * 20 + [3.0] * 200) == ["The training loss exploded: it was down to 1.000 and is now 3.000."]


def test_the_end_is_the_last_window_that_is_full():
    """45 steps: windows begin at 0, 10 and 20, so the end is the mean of steps 20 to 39."""
    assert messages([1.0] * 20 + [2.0] * 25) == ["The training loss exploded: it was down to 1.000 and is now 2.000."]
    assert messages([1.0] * 40 + [9.0] * 5) == []


@pytest.mark.parametrize(("steps", "found"), [(200, True), (201, False)])
def test_of_a_long_run_the_last_ten_windows_are_looked_at(steps, found):
    curve = [0.0] + [2.0 - number / 250 for number in range(1, steps)]
    assert any("exactly 0 at step 1" in message for message in messages(curve)) == found


@pytest.mark.parametrize(("steps", "found"), [(59, False), (60, True)])
def test_a_curve_is_flat_after_three_windows(steps, found):
    assert any("hardly moved" in message for message in messages([2.0] * steps)) == found


@pytest.mark.parametrize(
    ("begun", "end", "found"),
    [(50.0, 49.0, False), (50.0, 49.25, True), (50.0, 51.0, False), (50.0, 50.75, True), (50.0, 25.0, False)],
)
def test_a_curve_is_flat_where_it_moved_by_less_than_a_fiftieth(begun, end, found):
    (*_, last) = messages([begun] * 20 + [end] * 40) or [""]
    assert last.startswith("The training loss has hardly moved in 60 steps") == found


@pytest.mark.parametrize(("rise", "found"), [(1.0, True), (0.03125, True), (0.015625, False)])
def test_a_rise_of_two_hundredths_of_a_nat_is_overfitting(rise, found):
    (*_, last) = messages([], [(1, 0.5), (2, 0.5 + rise), (3, 0.5 + rise)], more=[ev.Finished()]) or [""]
    assert last.startswith("The run overfits") == found


def test_a_rise_of_exactly_the_limit_counts():
    assert messages([], [(1, 0.0), (2, 0.02)], more=[ev.Finished()]) != []


@pytest.mark.parametrize(("evaluations", "found"), [(1, False), (2, True)])
def test_a_run_is_compared_with_its_base_from_the_second_evaluation_on(evaluations, found):
    assert bool(messages([], [(step, 2.0) for step in range(1, evaluations + 1)], 1.0)) == found


def test_the_gravest_stands_first():
    losses = [0.0, *[1.0] * 39, *[9.0] * 40]
    events = [ev.JobStarted(job="train"), measured(0, 1.0, adapter=False)]
    events += [step(number, loss) for number, loss in enumerate(losses, 1)]
    events += [measured(1, 1.5), measured(2, 3.0), measured(3, 3.0)]
    begun = [problem.message.split(":")[0][:34] for problem in diagnose(fold(events))]
    assert begun == [
        "The training loss was exactly 0 at step 1, which no real text gives."[:34],
        "The training loss exploded",
        "The adapter is not better than its",
        "The run overfits",
    ]


def test_a_window_that_lacks_its_last_step_is_not_looked_at():
    """49 steps: the window that would begin at 30 is one short, so the end is still quiet; with 50 it is full."""
    assert not exploded([1.0] * 40 + [9.0] * 9)
    assert exploded([1.0] * 40 + [9.0] * 10)
