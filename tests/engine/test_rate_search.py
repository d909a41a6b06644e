"""Rates are tried from the same start over the same rows, and the model is as it was afterwards."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from qlora_studio.core import events as ev
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import RatePoint, RateReport
from qlora_studio.engine.forward import LossFunction
from qlora_studio.engine.kernels.offloading import Offloading
from qlora_studio.engine.ladder import planned_limits
from qlora_studio.engine.loop import TrainingLoop, train
from qlora_studio.engine.rate_search import RateSearch, choose
from tests.engine.conftest import make_examples
from tests.engine.test_loop import Recorder, setup

RATES = (1e-6, 5e-3, 1e-2)


def never() -> bool:
    return False


def search(made, steps=3, rates=RATES, advanced=lambda done, total: None, should_stop=never):
    return RateSearch(made, steps, advanced, should_stop).run(rates)


def test_a_trial_comes_to_what_a_run_of_so_many_steps_comes_to(tiny_adapter_model, tmp_path):
    made = setup(
        tiny_adapter_model, tmp_path, held_out=make_examples(5, seed=3), optim__max_steps=3,
        evaluation__every_steps=3, lora__dropout=0.0,
    )  # fmt: skip
    found = search(made)
    assert found is not None and [point.rate for point in found.points] == sorted(RATES)
    run = train(made, Recorder().emit, lambda: "")
    assert found.points[1].loss == pytest.approx(run.held_out.newest[1], abs=1e-6)
    assert found.base_loss == pytest.approx(run.held_out.before, abs=1e-6)


@pytest.mark.slow
def test_the_adapter_is_as_it_was_and_every_trial_begins_there(tiny_adapter_model, tmp_path):
    made = setup(tiny_adapter_model, tmp_path, held_out=make_examples(5, seed=3))
    before = {name: value.clone() for name, value in tiny_adapter_model.state_dict().items() if "lora_" in name}
    first, again = search(made), search(made, rates=RATES[::-1])
    assert first == again
    after = tiny_adapter_model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(parameter.grad is None for parameter in tiny_adapter_model.parameters())


def test_without_held_out_rows_the_last_rows_trained_are_measured(tiny_adapter_model, tmp_path):
    found = search(setup(tiny_adapter_model, tmp_path))
    assert found is not None and not found.held_out and found.points[2].loss < found.base_loss


def test_progress_is_counted_over_all_rates_and_a_stop_ends_it(tiny_adapter_model, tmp_path):
    made, heard = setup(tiny_adapter_model, tmp_path, held_out=make_examples(5, seed=3)), []
    search(made, steps=2, advanced=lambda done, total: heard.append((done, total)))
    assert heard == [(number, 6) for number in range(1, 7)]
    assert search(made, should_stop=lambda: len(heard) > 2) is None


def test_a_rate_that_breaks_the_model_is_no_choice(tiny_adapter_model, tmp_path, monkeypatch):
    made = setup(tiny_adapter_model, tmp_path, held_out=make_examples(5, seed=3))
    monkeypatch.setattr("qlora_studio.engine.rate_search.evaluate", lambda *arguments: math.nan)
    found = search(made, rates=(1e-3,))
    assert found is not None and found.points == (RatePoint(rate=1e-3, loss=None),) and found.rate is None
    assert "no rate is better than the base" in found.sentence


@pytest.mark.parametrize(
    ("losses", "base", "rate"),
    [
        ([2.0, 1.5, 1.4, 1.8], 2.1, 3.0),
        ([2.0, 1.404, 1.4, 1.395], 2.1, 2.0),  # alike: the lowest
        ([2.0, 1.5, 1.4, None], 2.1, 3.0),
        ([2.3, 2.2, 2.2, 2.2], 2.1, None),
        ([None, None, None, None], 2.1, None),
    ],
)
def test_the_lowest_of_the_best_is_taken(losses, base, rate):
    points = [RatePoint(rate=number, loss=loss) for number, loss in enumerate(losses, 1)]
    assert choose(points, base) == rate


@pytest.mark.parametrize(("rate", "message"), [(1.0, "a lower one may be better"), (3.0, "a higher one may be better")])
def test_a_choice_at_the_edge_says_so(rate, message):
    points = tuple(RatePoint(rate=number, loss=1.0) for number in (1.0, 2.0, 3.0))
    assert message in RateReport(steps=9, points=points, held_out=True, rate=rate).sentence
    assert "better still" not in RateReport(steps=9, points=points, held_out=True, rate=2.0).sentence


@pytest.mark.parametrize(
    ("offload", "moved"), [("none", False), ("embeddings", False), ("boundaries", True), ("both", True)]
)
def test_search_and_run_put_boundaries_where_the_plan_says(tiny_adapter_model, tmp_path, offload, moved):
    made = setup(tiny_adapter_model, tmp_path)
    made = dataclasses.replace(made, plan=made.plan.model_copy(update={"offload": offload}))
    found = RateSearch(made, 3, lambda done, total: None, never)
    run = TrainingLoop(made, Recorder().emit, lambda: "")
    assert [loop.ladder.offloading is not None for loop in (found, run)] == [moved, moved]
    assert found.ladder.limits == run.ladder.limits == planned_limits(made.plan, tiny_adapter_model)


def spoil(monkeypatch, which: int) -> None:
    """The boundary that is fetched as this one comes back with another bit."""
    take, taken = Offloading._take, []

    def spoiled(self, held):
        taken.append(held.shape)
        if len(taken) == which:
            held.pieces[0].view(torch.uint8)[0] ^= 1
        return take(self, held)

    monkeypatch.setattr(Offloading, "_take", spoiled)


@pytest.mark.parametrize("which", [1, 8])
def test_a_boundary_that_comes_back_changed_ends_a_run_before_its_step_is_applied(
    tiny_adapter_model, tmp_path, monkeypatch, which
):
    made = setup(tiny_adapter_model, tmp_path)
    plan = made.plan.model_copy(update={"offload": "boundaries", "checkpointed_layers": 1})
    spoil(monkeypatch, which)
    recorder = Recorder()
    with pytest.raises(StudioError, match="came back changed"):
        train(dataclasses.replace(made, plan=plan), recorder.emit, lambda: "")
    steps = len(recorder.losses)
    assert (steps > 0) == (which > 1) and all(math.isfinite(loss) for loss in recorder.losses)
    assert not recorder.of(ev.UpdateSkipped)
    assert sorted(int(one.name.split("-")[-1]) for one in (tmp_path / "checkpoints").glob("*"))[-1:] == [steps][:steps]


def test_a_boundary_that_comes_back_changed_ends_a_search(tiny_adapter_model, tmp_path, monkeypatch):
    made = setup(tiny_adapter_model, tmp_path)
    plan = made.plan.model_copy(update={"offload": "boundaries", "checkpointed_layers": 1})
    spoil(monkeypatch, 8)
    with pytest.raises(StudioError, match="came back changed"):
        search(dataclasses.replace(made, plan=plan))


def test_an_update_that_is_not_finite_ends_a_trial_and_the_next_begins_from_the_start(
    tiny_adapter_model, tmp_path, monkeypatch
):
    made = setup(tiny_adapter_model, tmp_path, held_out=make_examples(3, seed=3))
    original, passes = LossFunction.row_losses, []

    def poison(self, batch):
        losses = original(self, batch)
        if losses.requires_grad:
            passes.append(1)
            return losses * (math.nan if len(passes) == 2 else 1)
        return losses

    monkeypatch.setattr(LossFunction, "row_losses", poison)
    found = search(made, steps=2, rates=(1e-3, 2e-3))
    assert [point.loss is None for point in found.points] == [True, False]
    assert (found.steps, found.held_out) == (2, True)


@pytest.mark.parametrize(("held_out", "expected"), [(3, 3), (64, 64), (65, 64), (0, None)])
def test_so_many_rows_are_measured(tiny_adapter_model, tmp_path, held_out, expected):
    examples = make_examples(held_out, seed=3)
    made = setup(tiny_adapter_model, tmp_path, held_out=examples, optim__epochs=3)
    found = RateSearch(made, 9, lambda done, total: None, never)
    if expected is None:  # the rows of the last four of nine steps
        assert found.measured_on == [made.train[row] for step in found.steps[5:] for row in step.rows]
        assert len(found.steps) == 9
    else:
        assert found.measured_on == examples[:expected]
