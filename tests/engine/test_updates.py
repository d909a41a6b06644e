"""Updates: clipped, scheduled, refused where they are not finite; with a real GradScaler."""

from __future__ import annotations

import json
import math

import pytest
import torch
from bitsandbytes.optim import AdamW8bit

from qlora_studio.engine.accumulator import StepSums
from qlora_studio.engine.updates import LEAST_LOSS_SCALE, Updates, make_optimizer, trained_groups
from tests.engine.conftest import make_config


def make_updates(*, total=10, scaled=False, **optim) -> tuple[torch.nn.Parameter, Updates]:
    values = {"learning_rate": 0.1, "warmup_share": 0.0, "schedule": "constant", **optim}
    config = make_config(**{f"optim__{name}": value for name, value in values.items()})
    parameter = torch.nn.Parameter(torch.ones(4))
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    return parameter, Updates(make_optimizer([parameter], config, "adamw"), config.optim, total, scaler)


def sums(loss: float, **metrics: float) -> StepSums:
    return StepSums(torch.tensor(loss), {name: torch.tensor(value) for name, value in metrics.items()})


def backward(parameter: torch.nn.Parameter, gradient: float, updates: Updates) -> None:
    """Leaves this gradient in each of the four numbers, scaled as a backward pass would."""
    updates.scaler.scale((parameter * gradient).sum()).backward()


@pytest.mark.parametrize(("scaled"), [False, True])
def test_the_norm_is_reported_unscaled_and_before_clipping_and_the_gradient_is_clipped(scaled):
    parameter, updates = make_updates(scaled=scaled, max_grad_norm=0.5)
    backward(parameter, 3.0, updates)
    measured = updates.measure(sums(2.5, margin=0.25))
    assert (measured.loss, measured.metrics, measured.finite) == (2.5, {"margin": 0.25}, True)
    assert measured.grad_norm == pytest.approx(6.0)
    assert parameter.grad.norm().item() == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize(("loss", "gradient"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_either_number_may_be_the_one_that_is_not_finite(loss, gradient):
    parameter, updates = make_updates()
    backward(parameter, gradient, updates)
    assert not updates.measure(sums(loss)).finite


def test_an_update_moves_against_the_gradient_and_the_next_begins_without_one():
    parameter, updates = make_updates()
    backward(parameter, 3.0, updates)
    updates.measure(sums(1.0))
    updates.apply()
    updates.end_step()
    assert parameter.tolist() == pytest.approx([0.9] * 4, rel=1e-4) and parameter.grad is None


def test_the_schedule_warms_up_falls_and_ends_at_nothing():
    parameter, updates = make_updates(total=6, schedule="linear", warmup_share=0.3)
    rates = []
    for _ in range(6):
        backward(parameter, 1.0, updates)
        updates.measure(sums(1.0))
        rates.append(updates.learning_rate)
        updates.apply()
        updates.end_step()
    assert rates == pytest.approx([0, 0.05, 0.1, 0.075, 0.05, 0.025])
    assert updates.learning_rate == 0


def test_an_overflow_halves_the_scale_until_it_is_least_and_then_is_no_overflow():
    parameter, updates = make_updates(scaled=True)
    scales = []
    while True:
        backward(parameter, math.inf, updates)
        if not updates.lower_scale(updates.measure(sums(1.0))):
            break
        assert parameter.grad is None
        scales.append(updates.scaler.get_scale())
    assert scales == [2.0**power for power in range(15, -1, -1)] and scales[-1] == LEAST_LOSS_SCALE
    assert parameter.tolist() == [1] * 4


def test_a_loss_that_is_not_finite_is_not_for_want_of_a_scale():
    parameter, updates = make_updates(scaled=True)
    backward(parameter, math.inf, updates)
    assert not updates.lower_scale(updates.measure(sums(math.nan)))
    assert updates.scaler.get_scale() == 65536


def test_without_a_scale_there_is_none_to_lower():
    parameter, updates = make_updates()
    backward(parameter, math.inf, updates)
    assert not updates.lower_scale(updates.measure(sums(1.0)))


def test_the_state_of_schedule_and_scale_comes_back():
    parameter, updates = make_updates(scaled=True, schedule="cosine")
    backward(parameter, math.inf, updates)
    updates.lower_scale(updates.measure(sums(1.0)))
    for _ in range(3):
        backward(parameter, 1.0, updates)
        updates.measure(sums(1.0))
        updates.apply()
        updates.end_step()
    _, other = make_updates(scaled=True, schedule="cosine")
    other.load_state(updates.state())
    assert other.learning_rate == updates.learning_rate != 0.1
    assert other.optimizer.param_groups[0]["lr"] == updates.learning_rate
    assert other.scaler.get_scale() == 32768


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("adamw_8bit", AdamW8bit)])
def test_optimizers_take_rate_and_decay_from_the_config(name, kind):
    config = make_config(optim__learning_rate=0.03, optim__weight_decay=0.2)
    optimizer = make_optimizer([torch.nn.Parameter(torch.ones(2))], config, name)
    assert isinstance(optimizer, kind)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]) == (0.03, 0.2)


class Adapter(torch.nn.Module):
    """Two trained factors and a frozen weight, by the names that PEFT gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Module()
        for name in ("lora_A", "lora_B"):
            self.layer.add_module(name, torch.nn.ModuleDict({"default": torch.nn.Linear(2, 2, bias=False)}))
        self.base = torch.nn.Linear(2, 2).requires_grad_(False)


def test_lora_plus_has_a_group_of_its_own_for_the_second_factors():
    model = Adapter()
    a, b = model.layer.lora_A["default"].weight, model.layer.lora_B["default"].weight

    def groups(ratio):
        config = make_config(optim__learning_rate=0.5, optim__loraplus_ratio=ratio)
        found = trained_groups(model, config.optim)
        optimizer = make_optimizer(found, config, "adamw")
        return [(list(map(id, group["params"])), group["lr"]) for group in optimizer.param_groups]

    assert groups(1) == [([id(a), id(b)], 0.5)]
    assert groups(4) == [([id(a)], 0.5), ([id(b)], 2.0)]


def test_a_resumed_schedule_has_the_rates_of_its_own_length_in_every_group():
    def updates(total):
        config = make_config(optim__learning_rate=0.5, optim__loraplus_ratio=4, optim__schedule="linear", optim__warmup_share=0)  # fmt: skip
        optimizer = make_optimizer(trained_groups(Adapter(), config.optim), config, "adamw")
        return Updates(optimizer, config.optim, total, torch.amp.GradScaler("cpu", enabled=False))

    short, longer = updates(4), updates(8)
    for _ in range(2):
        short.end_step()
    assert [group["lr"] for group in short.optimizer.param_groups] == [0.25, 1.0]
    state = short.state()
    assert state["schedule"]["lr_lambdas"] == [None, None] and state["schedule"]["last_epoch"] == 2
    json.dumps(state)
    longer.load_state(state)
    assert [group["lr"] for group in longer.optimizer.param_groups] == [0.375, 1.5]
    assert (longer.learning_rate, longer.schedule.get_last_lr()) == (0.375, [0.375, 1.5])


def test_a_scale_that_does_not_fall_is_not_lowered():
    parameter, updates = make_updates(scaled=True)
    backward(parameter, 1.0, updates)
    assert not updates.lower_scale(updates.measure(sums(1.0))), "there was no overflow"
    assert updates.scaler.get_scale() == 65536


@pytest.mark.parametrize(("share", "total", "warmup"), [(0.0, 10, 0), (0.25, 10, 3), (0.2, 10, 2), (0.9, 3, 3)])
def test_the_warmup_is_a_share_of_all_steps_rounded_up(share, total, warmup):
    _, updates = make_updates(total=total, warmup_share=share, schedule="linear")
    rates = []
    for _ in range(total):
        rates.append(updates.learning_rate)
        updates.end_step()
    assert rates[:warmup] == pytest.approx([0.1 * step / max(1, warmup) for step in range(warmup)])
    assert total == warmup or rates[warmup] == pytest.approx(0.1)
