"""Runs beside each other: losses at equal marks, answers to the same prompts, settings in which they differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.progress import JobView, Progress
from qlora_studio.core.runs import (
    CheckpointView,
    RunSummary,
    RunView,
    best_first,
    common_answers,
    differing_settings,
    losses_at_marks,
    move_along,
)
from qlora_studio.core.series import Series
from tests.core.frozen import stays

PROGRESS = Progress(
    state="running",
    base_loss=4.0,
    losses=Series([(1, 3.0), (2, 2.0), (3, 1.0), (4, 0.5)]),
    evaluations=Series([(2, 2.5), (4, 1.5)]),
    tokens=Series([(1, 100.4), (2, 200.6), (3, 300.0), (4, 400.0)]),
    seconds=Series([(1, 1.0), (2, 2.0), (3, 3.0)]),
)
SHORT = Progress(losses=Series([(1, 5.0)]), tokens=Series([(1, 150.0)]), seconds=Series([(1, 6.0)]))


def view(progress: Progress, name: str = "run", **changes) -> RunView:
    config = TrainConfig().replace(changes)
    return RunView(name, name, 0.0, config, JobView("stopping", progress, 9.0), Path("/runs") / name, False)


def test_a_run_hands_on_what_its_job_knows():
    run = view(PROGRESS)
    assert (run.state, run.progress, run.seconds, run.at_work) == ("stopping", PROGRESS, 9.0, True)
    assert CheckpointView(120, None, best=False, newest=True, pinned=False).name == "step-120"
    for state, at_work in (("starting", True), ("queued", False), ("finished", False)):
        assert RunSummary(name="r", title="r", created=0, state=state).at_work == at_work


def test_points_are_moved_to_what_was_reached_at_their_step():
    points = [(0, 4.0), (2, 2.5), (4, 1.5)]
    assert move_along(PROGRESS, points, "step") == points
    assert move_along(PROGRESS, points, "tokens") == [(0, 4.0), (201, 2.5), (400, 1.5)]
    assert move_along(PROGRESS, points, "seconds") == [(0, 4.0), (2, 2.5)], "nobody has counted step 4's"


def test_training_losses_are_the_mean_since_the_mark_before():
    runs = [view(PROGRESS), view(SHORT)]
    assert losses_at_marks(runs, "step", held_out=False, marks=2) == [(2.0, [2.5, 5.0]), (4.0, [0.75, None])]
    assert losses_at_marks(runs, "tokens", held_out=False, marks=4) == [
        (100.0, [3.0, None]), (200.0, [None, 5.0]), (300.0, [1.5, None]), (400.0, [0.5, None]),
    ]  # fmt: skip
    assert losses_at_marks(runs, "seconds", held_out=False, marks=2) == [(3.0, [2.0, None]), (6.0, [None, 5.0])]


def test_held_out_losses_begin_with_the_base_and_are_the_newest_since_the_mark_before():
    runs = [view(PROGRESS), view(SHORT)]
    assert losses_at_marks(runs, "step", held_out=True, marks=2) == [
        (0.0, [4.0, None]), (2.0, [2.5, None]), (4.0, [1.5, None]),
    ]  # fmt: skip
    assert losses_at_marks(runs, "step", held_out=True, marks=1) == [(0.0, [4.0, None]), (4.0, [1.5, None])]


def test_ten_marks_unasked_and_none_twice():
    long = Progress(losses=Series([(number, 1.0 * number) for number in range(1, 21)]))
    assert losses_at_marks([view(long)], "step", held_out=False) == [(end, [end - 0.5]) for end in range(2, 21, 2)]
    assert [end for end, _ in losses_at_marks([view(PROGRESS)], "step", held_out=False)] == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("held_out", [True, False])
def test_runs_that_measured_nothing_have_no_marks(held_out):
    assert losses_at_marks([view(Progress()), view(Progress())], "step", held_out=held_out) == []


def test_answers_to_a_prompt_that_one_run_alone_was_asked_are_left_out():
    runs = [{"a": "1", "b": "2", "d": "7"}, {"b": "3", "c": "4"}, {"a": "5", "b": "6"}]
    assert common_answers(runs) == [("a", ["1", None, "5"]), ("b", ["2", "3", "6"])]


def test_the_best_held_out_loss_comes_first_and_none_last():
    none, worse, best = view(Progress(), "a"), view(Progress(evaluations=Series([(1, 2.0)])), "b"), view(PROGRESS, "c")
    assert [run.name for run in sorted([none, worse, best], key=best_first)] == ["c", "b", "a"]
    assert (best_first(best), best_first(none)) == ((1.5, "c"), (float("inf"), "a"))


def test_settings_that_differ_are_listed_with_the_value_of_each_run():
    runs = [view(Progress()), view(Progress(), **{"lora.rank": 8}), view(Progress(), **{"optim.seed": 7})]
    seed = TrainConfig().optim.seed
    assert differing_settings(runs) == [("lora.rank", (16, 8, 16)), ("optim.seed", (seed, seed, 7))]
    assert differing_settings(runs[:1]) == [] and differing_settings([]) == []


def test_a_line_of_the_history_of_which_little_is_known_says_nothing():
    said = {"name": "a", "title": "A", "created": 1.0, "state": "queued"}
    line = RunSummary(**said)
    assert line.model_dump(exclude=set(said)) == {
        "unreadable": "", "base": "", "rank": 0, "step": 0, "total_steps": 0, "loss": None, "held_out": None,
        "best_held_out": None, "seconds": None, "peak_bytes": 0, "has_adapter": False, "has_curve": False, "note": "",
        "tags": (), "pinned": False,
    }  # fmt: skip
    assert stays(line)
    states = ("queued", "starting", "running", "stopping", "finished", "interrupted")
    at_work = [state for state in states if RunSummary(**said | {"state": state}).at_work]
    assert at_work == ["starting", "running", "stopping"]
