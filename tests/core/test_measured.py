"""A run's own peak and its largest step, each beside the plan of that very thing."""

from __future__ import annotations

import pytest

from qlora_studio.core import events as ev
from qlora_studio.core.measured import compare_peak, differences
from qlora_studio.core.plan import GIB, MIB, MemoryEstimate, MemoryPart, MemoryPlan
from qlora_studio.core.progress import Progress, fold


def made(device: str, tensors: int = 2 * GIB, context: int = 512 * MIB) -> MemoryPlan:
    parts = {"activations": tensors, "context": context}
    return MemoryPlan(
        device=device, budget_bytes=4 * GIB, micro_batch_tokens=256, checkpointed_layers=0, layers=2,
        adapter_precision="fp32", optimizer="adamw",
        estimate=MemoryEstimate(parts=tuple(MemoryPart(key=key, label=key, bytes=size) for key, size in parts.items())),
    )  # fmt: skip


def step(peak_bytes: int) -> ev.StepLogged:
    return ev.StepLogged(
        step=1, total_steps=2, epoch=1, loss=1, learning_rate=1e-4, grad_norm=1, tokens=9, trained_tokens=9,
        tokens_per_second=1, peak_bytes=peak_bytes,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("device", "planned", "budget"), [("cpu", 2.5, 4), ("cuda", 2, 3.5)], ids=["a whole process", "an allocator"]
)
def test_a_plan_is_compared_with_what_a_peak_counts(device, planned, budget):
    plan = made(device)
    assert plan.comparable_bytes == planned * GIB
    assert plan.comparable_budget_bytes == budget * GIB


def test_the_peak_of_the_run_and_not_the_probe_is_compared_with_the_plan():
    events = [
        ev.PlanMade(plan=made("cpu")),
        ev.ProbeMeasured(predicted_bytes=round(2.5 * GIB), measured_bytes=2 * GIB),
        step(round(2.75 * GIB)),
    ]
    assert differences(fold(events)) == [
        "The largest step took 20% less than was planned.",
        "The peak so far is 10% more than the plan.",
    ]
    assert compare_peak(fold([*events, ev.Stopped()])) == "The peak of the run is 10% more than the plan."


def test_on_a_card_the_context_is_left_out_on_both_sides():
    """Nothing measures it: with it in the plan every run would seem to take half a gigabyte less than planned."""
    progress = fold([ev.PlanMade(plan=made("cuda")), step(2 * GIB)])
    assert compare_peak(progress) == "The peak so far is as much as the 2.0 GiB planned beside CUDA's context."


def test_nothing_is_said_of_what_was_not_measured():
    assert differences(Progress()) == []
    assert differences(fold([ev.PlanMade(plan=made("cpu"))])) == []


@pytest.mark.parametrize(
    ("measured", "predicted", "sentence"),
    [
        (round(1.6 * GIB), 2 * GIB, "The largest step took 20% less than the 2.0 GiB planned for it."),
        (round(2.31 * GIB), round(2.25 * GIB), "The largest step took 3% more than the 2.2 GiB planned for it."),
        (round(2.51 * GIB), round(2.5 * GIB), "The largest step took as much as was planned."),
    ],
)
def test_a_step_that_was_planned_apart_from_the_run_is_compared_with_its_own_plan(measured, predicted, sentence):
    probe = ev.ProbeMeasured(predicted_bytes=predicted, measured_bytes=measured)
    assert differences(fold([ev.PlanMade(plan=made("cpu")), probe])) == [sentence]
