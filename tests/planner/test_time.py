"""Times that are foretold: the calculated table of known cards, what was measured before, and what a run amounts to."""

import pytest

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.events import StepLogged
from qlora_studio.core.machine import Machine, Speed
from qlora_studio.core.plan import GIB, GpuInfo, PlanSettings
from qlora_studio.core.steps import Step, plan_steps
from qlora_studio.planner.families import count_weights
from qlora_studio.planner.fit import make_plan
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES
from qlora_studio.planner.time import (
    Work,
    estimate_time,
    flops_per_token,
    measured_speed,
    work_of,
)
from tests.matrix import mostly_slow

EIGHT, ONE, SMOL = (REFERENCE_SHAPES[name] for name in ("Llama-3.1-8B", "Llama-3.2-1B", "SmolLM2-135M"))
CARDS = {"4090": (165.2e12, 1008e9), "3060": (25.6e12, 360e9), "4060": (30.0e12, 272e9)}
PROCESSOR = Machine(memory_bytes=32 * GIB, memory_available_bytes=24 * GIB, cores=2, cpu_bf16=True)


def machine(name, *speeds):
    flops, bandwidth = CARDS[name]
    card = GpuInfo(index=0, name=name, total_bytes=48 * GIB, free_bytes=48 * GIB, peak_flops=flops, bandwidth=bandwidth)
    return Machine(cards=(card,), speeds=speeds)


def with_settings(shape, there, tokens, twice):
    plan = make_plan(TrainConfig(), shape, there)
    settings = PlanSettings(micro_batch_tokens=tokens, checkpointed_layers=twice, device=plan.device)
    return plan.model_copy(update={"settings": settings, "checkpointed_layers": twice, "micro_batch_tokens": tokens})


@pytest.mark.parametrize(
    ("card", "shape", "tokens", "twice", "calculated"),
    [
        ("4090", EIGHT, 2048, 0, 2961),
        ("4090", EIGHT, 4096, 32, 2258),
        ("3060", EIGHT, 2048, 32, 437),
        ("4060", EIGHT, 2048, 31, 475),
        ("4090", ONE, 4096, 0, 15072),
    ],
)
def test_the_rough_formula_meets_the_kernel_count_within_a_fifth(card, shape, tokens, twice, calculated):
    """Beside a model of every kernel of a layer, counted by hand; no card was measured (2026-11-21)."""
    there = machine(card)
    plan = with_settings(shape, there, tokens, twice)
    estimate = estimate_time(TrainConfig(), shape, plan, Work(10, 10_000, tokens), there)
    assert estimate.tokens_per_second == pytest.approx(calculated, rel=0.2)
    assert (estimate.measured, estimate.basis) == (
        False,
        "by a rough formula: nothing was measured on this machine yet",
    )


def test_a_processor_is_taken_at_what_one_reached():
    """SmolLM2-135M on two cores with bf16 of their own: 410 tokens/s (2026-11-21)."""
    plan = with_settings(SMOL, PROCESSOR, 1024, 0)
    assert estimate_time(TrainConfig(), SMOL, plan, Work(1, 1, 200), PROCESSOR).tokens_per_second == pytest.approx(
        410, rel=0.05
    )


def test_what_was_measured_with_the_model_comes_back_as_it_was():
    steps = [step(tokens=1000, rate=500.0)] * 3 + [step(tokens=1000, rate=100.0)] * 5
    plan = with_settings(EIGHT, machine("3060"), 2048, 16)
    speed = measured_speed(EIGHT, plan, steps)
    assert (speed.model, speed.weights) == ("Llama-3.1-8B", count_weights(EIGHT))
    estimate = estimate_time(TrainConfig(), EIGHT, plan, Work(1, 1, 1024), machine("3060", speed))
    assert estimate.tokens_per_second == pytest.approx(100, rel=0.001)
    assert (estimate.measured, estimate.basis) == (True, "by what this card reached with Llama-3.1-8B")


def test_more_checkpointing_than_was_measured_takes_longer():
    there = machine("3060", Speed(model="x", weights=count_weights(EIGHT), flops_per_second=1e13))
    few, all_layers = (
        estimate_time(TrainConfig(), EIGHT, with_settings(EIGHT, there, 2048, layers), Work(1, 1, 512), there)
        for layers in (0, 32)
    )
    assert few.tokens_per_second / all_layers.tokens_per_second == pytest.approx(5.46 / 4, rel=0.05)


def test_the_measurement_of_the_nearest_size_is_taken():
    speeds = [
        Speed(model=shape.name, weights=count_weights(shape), flops_per_second=rate)
        for shape, rate in ((SMOL, 1e12), (EIGHT, 2e13))
    ]
    there = machine("3060", *speeds)
    three = REFERENCE_SHAPES["Llama-3.2-3B"]
    basis = estimate_time(TrainConfig(), three, with_settings(three, there, 2048, 0), Work(1, 1, 512), there).basis
    assert basis == "by what this card reached with Llama-3.1-8B"


@pytest.mark.parametrize("steps", mostly_slow([0, 3, 5], 5))
def test_a_few_steps_say_nothing(steps):
    plan = with_settings(EIGHT, machine("3060"), 2048, 16)
    assert measured_speed(EIGHT, plan, [step(tokens=10, rate=1.0)] * steps) is None


def test_the_work_is_that_of_the_steps_that_will_be_taken():
    config = TrainConfig().replace({"optim.batch_tokens": 100, "optim.epochs": 2})
    lengths = [10, 40, 70, 30] * 5
    steps = plan_steps(lengths, config.optim)
    assert work_of(lengths, steps, held_out_rows=4) == Work(len(steps), 2 * sum(lengths), 37.5, 150)


def test_padded_rows_take_the_time_of_their_padding():
    """Of rows of 10 and 90 tokens each micro-batch of 200 holds two: packed 100 in 128, padded 180."""
    config = TrainConfig().replace({"optim.batch_tokens": 100, "optim.epochs": 1})
    lengths, there = [10, 90] * 20, machine("3060")
    taken = [Step((2 * row, 2 * row + 1), 0.0) for row in range(20)]
    plan = with_settings(EIGHT, there, 200, 0)
    seconds, padding = {}, {}
    for packed in (True, False):
        work = work_of(lengths, taken, 4, plan.settings.model_copy(update={"packed": packed}))
        padding[packed] = work.padding
        seconds[packed] = estimate_time(config, EIGHT, plan, work, there)
    assert padding == {True: 1.28, False: 1.8}
    assert seconds[True].tokens_per_second / seconds[False].tokens_per_second == pytest.approx(1.8 / 1.28)
    assert seconds[False].seconds > seconds[True].seconds


def test_evaluations_take_time_only_where_rows_are_held_out():
    there, plan = machine("3060"), with_settings(EIGHT, machine("3060"), 2048, 0)
    with_rows, without = (
        estimate_time(TrainConfig(), EIGHT, plan, Work(100, 100_000, 512, held), there).seconds for held in (10_000, 0)
    )
    forward = 2 * count_weights(EIGHT) + 2 * EIGHT.vocab * EIGHT.hidden
    rate = estimate_time(TrainConfig(), EIGHT, plan, Work(1, 1, 512), there).tokens_per_second
    assert with_rows - without == pytest.approx(6 * 10_000 * forward / (rate * flops_per_token(EIGHT, 0, 512)))


def step(tokens, rate):
    return StepLogged(
        step=1, total_steps=9, epoch=0.1, loss=1.0, learning_rate=1e-4, grad_norm=1.0, tokens=tokens,
        trained_tokens=tokens, tokens_per_second=rate, peak_bytes=0,
    )  # fmt: skip
