"""What a loop says and does at single moments: a descent, an overflow, a refused update, a request, an evaluation."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from qlora_studio.core import events as ev
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.held_out import HeldOut
from qlora_studio.core.steps import Step
from qlora_studio.engine.accumulator import StepRows, StepSums
from qlora_studio.engine.ladder import Descent, Limits
from qlora_studio.engine.loop import TrainingLoop
from qlora_studio.engine.updates import Measured

ROWS = [SimpleNamespace(source=f"rows.jsonl:{number}", trained_tokens=number) for number in range(1, 6)]


@pytest.fixture
def loop():
    """A loop at step 4 of 10 of which only what a test looks at is there; `heard` are its events."""
    made = TrainingLoop.__new__(TrainingLoop)
    made.heard = []
    made.emit = made.heard.append
    made.step, made.first_step, made.refused_in_a_row = 4, 0, 0
    made.steps = [Step((0,), 1.0)] * 10
    made.setup = SimpleNamespace(train=ROWS, held_out=[1], config=TrainConfig())
    made.held_out = HeldOut()
    made.evaluate_at = {4}
    return made


def test_a_descent_is_told_with_its_step_and_its_limits(loop):
    loop._emit_descent(Descent(Limits(512, 3, 8, tiled_mlp=True), "less", "CUDA out of memory."))
    assert loop.heard == [
        ev.StepRetriedSmaller(
            step=5, change="less", micro_batch_tokens=512, checkpointed_layers=3, tiled_mlp=True,
            reason="CUDA out of memory.",
        )
    ]  # fmt: skip


def test_a_step_that_overflows_is_computed_again_at_half_the_scale_until_it_is_finite(loop):
    answers, asked, scales = [math.inf, math.nan, 2.0], [], [32768.0, 16384.0]
    sums = StepSums(torch.tensor(1.0))
    loop.accumulator = SimpleNamespace(add_gradients=lambda rows, scale: asked.append((rows, scale)) or sums)
    loop.updates = SimpleNamespace(
        scaler=SimpleNamespace(scale="scale", get_scale=lambda: scales.pop(0)),
        measure=lambda sums: Measured(1.0, answers.pop(0), {}),
        lower_scale=lambda measured: True,
    )
    assert loop._measure(Step((2, 0), 1.0)) == Measured(1.0, 2.0, {})
    assert asked == [(StepRows((2, 0), 5), "scale")] * 3
    text = "Step 5: the gradient overflowed fp16; it is computed again at loss scale"
    assert loop.heard == [ev.Noted(text=f"{text} 32768."), ev.Noted(text=f"{text} 16384.")]
    loop.heard.clear()
    answers[:], loop.updates.lower_scale = [math.inf], lambda measured: False
    assert loop._measure(Step((1,), 1.0)).grad_norm == math.inf and loop.heard == []


def test_the_third_refused_update_in_a_row_ends_the_run_with_the_adapter_from_before_them(loop):
    saved = []
    loop.saving = SimpleNamespace(save_adapter=lambda *place: saved.append(place))
    loop.accumulator = SimpleNamespace(refuse_changed=lambda: None)
    step, measured = Step((3, 0, 4, 1), 1.0), Measured(math.nan, math.inf, {})
    for number in (1, 2):
        loop._refuse(step, measured)
        assert (loop.refused_in_a_row, saved) == (number, [])
    with pytest.raises(StudioError) as caught:
        loop._refuse(step, measured)
    rows = "rows.jsonl:4, rows.jsonl:1, rows.jsonl:5"
    assert caught.value.message == f"3 updates in a row were not finite; the last rows were {rows}."
    assert saved == [(4, loop.held_out)]
    reason = f"Loss nan and gradient inf are not finite; rows {rows}."
    assert loop.heard == [ev.UpdateSkipped(step=5, reason=reason)] * 3


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), MemoryError()])
def test_an_update_without_memory_names_its_step_and_another_error_passes(loop, error):
    def fail():
        raise error

    loop.updates = SimpleNamespace(apply=fail)
    with pytest.raises(StudioError, match=r"^Memory ran out in the update of step 5\. Lower the rank, or choose"):
        loop._apply()
    assert loop.updating
    error = ValueError("shapes")
    with pytest.raises(ValueError, match="shapes"):
        loop._apply()


@pytest.mark.parametrize(
    ("evaluations", "loss", "saved", "note"),
    [
        ((), 2.0, [4], None),
        (((2, 3.0),), 2.0, [4], None),
        (((2, 1.5),), 2.0, [], None),
        (((2, 1.5), (3, 1.6)), 2.0, [], "The held-out loss has not become better since step 2: the run ends here, as its patience says."),
        (((4, 1.0),), None, [], None),
    ],
    ids=["the first", "the best", "worse", "patience is out", "measured already"],
)  # fmt: skip
def test_an_evaluation_that_is_the_best_is_kept_and_patience_has_an_end(loop, evaluations, loss, saved, note):
    kept = []
    loop.setup.config = TrainConfig().replace({"evaluation.patience": 2})
    loop.held_out = HeldOut(None, evaluations)
    loop.saving = SimpleNamespace(save_if_possible=lambda step, held_out: kept.append(step))
    loop._evaluate = lambda adapter: adapter and loss
    loop._evaluate_if_due()
    measured = [] if loss is None else [ev.PhaseEntered(phase="training")]
    assert kept == saved and loop.heard == [*([ev.Noted(text=note)] if note else []), *measured]
    assert loop.held_out.evaluations == (*evaluations, *([] if loss is None else [(4, loss)]))


def test_steps_between_evaluations_and_runs_without_held_out_rows_measure_nothing(loop):
    loop._evaluate = lambda adapter: pytest.fail("measured")
    loop.evaluate_at = {3, 5}
    loop._evaluate_if_due()
    loop.evaluate_at, loop.setup.held_out = {4}, []
    loop._evaluate_if_due()
    assert loop.heard == []


@pytest.mark.parametrize(
    ("ending", "newest", "calls"),
    [
        ("stopped", 3, ["save 4", "adapter 4 going on"]),
        ("stopped", 4, ["adapter 4 going on"]),
        ("paused", 3, ["save 4"]),
        ("paused", 4, []),
        ("finished", 3, ["save if possible 4", "adapter 4"]),
        ("early", 4, ["adapter 4"]),
    ],
)
def test_what_is_saved_at_an_end_depends_on_whether_the_run_may_go_on(loop, ending, newest, calls):
    done = []
    loop.loss = 1.25
    loop.saving = SimpleNamespace(
        checkpoints=SimpleNamespace(newest_step=newest),
        save=lambda step, held_out: done.append(f"save {step}"),
        save_if_possible=lambda step, held_out: done.append(f"save if possible {step}"),
        save_adapter=lambda step, held_out, going_on: done.append(f"adapter {step}{' going on' * going_on}"),
    )
    outcome = loop._leave(ending)
    assert done == calls
    assert (outcome.ending, outcome.step, outcome.total_steps, outcome.loss) == (ending, 4, 10, 1.25)
    assert loop.heard == ([] if ending == "paused" else [ev.PhaseEntered(phase="saving the adapter")])


@pytest.mark.parametrize(("step", "first", "kept"), [(4, 0, [(4, True)]), (4, 4, []), (0, 0, [])])
def test_after_an_error_the_last_whole_step_is_kept_where_one_was_taken(loop, step, first, kept):
    calls = []

    def fail():
        raise KeyError("anything")

    loop.step, loop.first_step, loop.updating, loop._run = step, first, True, fail
    loop.saving = SimpleNamespace(keep_last_whole_step=lambda step, held_out, updating: calls.append((step, updating)))
    with pytest.raises(KeyError):
        loop.run()
    assert calls == kept
