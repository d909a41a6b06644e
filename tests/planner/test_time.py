"""Times that are foretold: the calculated table of known cards, what was measured before, and what a run amounts to."""

import pytest

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.events import StepLogged
from qlora_studio.core.machine import Machine, Speed
from qlora_studio.core.plan import GIB, GpuInfo, PlanSettings
from qlora_studio.core.steps import Step, evaluation_steps, plan_steps
from qlora_studio.planner.families import count_weights
from qlora_studio.planner.fit import make_plan
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES
from qlora_studio.planner.time import (
    Work,
    estimate_time,
    flops_per_token,
    measured_speed,
    padding_of_steps,
    work_of,
)
from tests.matrix import mostly_slow
from tests.planner.test_families import TINY

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


def test_arithmetic_of_a_token_forward_and_backward_counted_by_hand():
    weights = 3 * 528  # of each layer of the tiny model 528
    plain = 4 * weights + 3.5 * 10 * 2 * 2 * 5 * 3 + 4 * 20 * 8
    assert flops_per_token(TINY, 0, 10) == plain
    again = 2 * (weights - 3 * 96) + 10 * 2 * 2 * 5 * 3  # up to the last product of the MLP, and attention once more
    assert flops_per_token(TINY, 3, 10) == pytest.approx(plain + again)
    assert flops_per_token(TINY, 1, 10) == pytest.approx(plain + again / 3)
    assert flops_per_token(TINY, 0, 0) == 4 * weights + 4 * 20 * 8


def test_how_fast_steps_were_counts_real_work_of_the_warm_ones():
    """Three steps of 1,000 tokens at 500, 250 and 250 tokens a second behind three that are left out."""
    settings = PlanSettings(micro_batch_tokens=2048, row_tokens=100, device="cpu")
    plan = with_settings(SMOL, PROCESSOR, 2048, 10).model_copy(update={"settings": settings})
    steps = [step(1000, 1.0)] * 3 + [step(1000, 500.0), step(1000, 250.0), step(1000, 250.0)]
    per_token = flops_per_token(SMOL, 10, 50)
    speed = measured_speed(SMOL, plan, steps)
    assert speed.flops_per_second == pytest.approx(3000 * per_token / 10)
    assert measured_speed(SMOL, plan, steps, padding=1.5).flops_per_second == pytest.approx(4500 * per_token / 10)
    for without in (None, settings.model_copy(update={"row_tokens": None})):
        other = plan.model_copy(update={"settings": without})
        found = measured_speed(SMOL, other, steps).flops_per_second
        assert found == pytest.approx(3000 * flops_per_token(SMOL, 10, 1024) / 10)
    silent = [*steps, step(1000, 0.0)]
    assert measured_speed(SMOL, plan, silent) == speed, "a step that was not timed says nothing"
    assert measured_speed(SMOL, plan, [*steps[:5], step(1000, 0.0)]) is None


def test_the_time_of_a_run_is_its_start_its_weights_and_its_work():
    there = machine("3060", Speed(model="x", weights=count_weights(EIGHT), flops_per_second=1e13))
    plan = with_settings(EIGHT, there, 2048, 0)
    per_token, config = flops_per_token(EIGHT, 0, 512), TrainConfig().replace({"evaluation.before": False})
    loading = 20 + 2 * count_weights(EIGHT) / 0.5e9
    found = estimate_time(config, EIGHT, plan, Work(100, 10_000, 512, padding=1.25), there)
    assert found.seconds == pytest.approx(loading + 1.25 * 10_000 * per_token / 1e13)
    assert found.tokens_per_second == pytest.approx(1e13 / per_token / 1.25)
    forward = 2 * count_weights(EIGHT) + 2 * EIGHT.vocab * EIGHT.hidden
    held = Work(100, 10_000, 512, 300, 1.25)
    evaluations = len(evaluation_steps(100, config.evaluation.every_steps))
    for before in (False, True):
        run = config.replace({"evaluation.before": before})
        more = estimate_time(run, EIGHT, plan, held, there).seconds - found.seconds
        assert more == pytest.approx(1.25 * 300 * forward * (evaluations + before) / 1e13)


def test_a_processor_is_named_as_such_and_its_cores_count_by_their_format():
    speed = Speed(model="small", weights=count_weights(SMOL), flops_per_second=3e11)
    plan = with_settings(SMOL, PROCESSOR, 1024, 0)
    work, there = Work(1, 1, 200), PROCESSOR.model_copy(update={"speeds": (speed,)})
    assert estimate_time(TrainConfig(), SMOL, plan, work, there).basis == "by what this processor reached with small"
    per_token = flops_per_token(SMOL, 0, 200)
    for compute, flops in (("bf16", 110e9), ("fp32", 40e9)):
        settings = plan.settings.model_copy(update={"compute": compute})
        found = estimate_time(TrainConfig(), SMOL, plan.model_copy(update={"settings": settings}), work, PROCESSOR)
        assert found.tokens_per_second == pytest.approx(2 * flops / per_token)
    before = plan.model_copy(update={"settings": None})
    assert estimate_time(TrainConfig(), SMOL, before, work, PROCESSOR).tokens_per_second == pytest.approx(
        2 * 110e9 / per_token
    )


def test_a_card_that_tells_neither_peak_nor_bandwidth_is_taken_for_a_small_one():
    told, silent = machine("4060"), machine("4060")
    card = told.cards[0].model_copy(update={"peak_flops": 20e12, "bandwidth": 300e9})
    told = told.model_copy(update={"cards": (card,)})
    nothing = card.model_copy(update={"peak_flops": None, "bandwidth": None})
    silent = silent.model_copy(update={"cards": (nothing,)})
    plan = with_settings(EIGHT, told, 2048, 16)
    found = [estimate_time(TrainConfig(), EIGHT, plan, Work(1, 1, 512), there) for there in (told, silent)]
    assert found[0] == found[1]


def test_padding_is_counted_over_the_first_two_hundred_steps():
    settings = PlanSettings(micro_batch_tokens=200, packed=False)
    taken = [Step((0, 1), 0.0)] * 200 + [Step((0, 0), 0.0)] * 50
    assert padding_of_steps([10, 90], taken, settings) == 1.8
    assert padding_of_steps([10, 90], taken[200:], settings) == 1.0
    assert padding_of_steps([10, 90], [], settings) == 1.0
    assert work_of([], [], 5) == Work(0, 0, 0.0, 0, 1.0)
    assert work_of([10, 90], taken[:2], 3, settings) == Work(2, 200, 50.0, 150, 1.8)
    assert (Work(1, 2, 3.0).held_out_tokens, Work(1, 2, 3.0).padding) == (0, 1.0)
