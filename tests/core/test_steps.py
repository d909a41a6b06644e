"""Which rows make a step depends on lengths, seed and settings alone."""

from __future__ import annotations

import pytest

from qlora_studio.core.config import OptimConfig
from qlora_studio.core.steps import evaluation_steps, plan_steps

LENGTHS = [10, 20, 30, 40, 50, 60]


def rows_of(**settings):
    return [step.rows for step in plan_steps(LENGTHS, OptimConfig(**({"batch_tokens": 100} | settings)))]


def test_every_epoch_has_every_row_once_in_an_order_of_its_own():
    seen = [row for rows in rows_of(epochs=2) for row in rows]
    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6)) and seen[:6] != seen[6:]


def test_the_order_is_that_of_the_seed():
    assert rows_of(epochs=1, seed=3) == rows_of(epochs=1, seed=3) != rows_of(epochs=1, seed=4)
    assert rows_of(epochs=1, seed=3, batch_tokens=10) == [(2,), (3,), (1,), (0,), (5,), (4,)]


def test_a_step_is_full_where_the_next_row_would_be_too_much():
    for rows, following in zip(rows_of(epochs=5), rows_of(epochs=5)[1:], strict=False):
        tokens = sum(LENGTHS[row] for row in rows)
        assert tokens <= 100 < tokens + LENGTHS[following[0]]


def test_a_row_longer_than_a_step_stands_alone():
    steps = plan_steps([500, 500, 500], OptimConfig(epochs=1, batch_tokens=100))
    assert sorted(step.rows for step in steps) == [(0,), (1,), (2,)]
    assert [step.epoch for step in steps] == [1 / 3, 2 / 3, 1.0]


def test_exactly_full_is_not_too_much():
    assert len(plan_steps([50, 50], OptimConfig(epochs=1, batch_tokens=100))) == 1
    assert len(plan_steps([50, 51], OptimConfig(epochs=1, batch_tokens=100))) == 2


@pytest.mark.parametrize(("epochs", "rows"), [(0.5, 3), (0.01, 1), (1, 6), (2.5, 15)])
def test_part_of_an_epoch_is_part_of_the_rows(epochs, rows):
    steps = plan_steps(LENGTHS, OptimConfig(epochs=epochs, batch_tokens=100))
    assert sum(len(step.rows) for step in steps) == rows and steps[-1].epoch == rows / 6


def test_a_limit_of_steps_ends_the_run_there():
    assert rows_of(epochs=5, max_steps=3) == rows_of(epochs=5)[:3]
    assert rows_of(epochs=1, max_steps=99) == rows_of(epochs=1)


@pytest.mark.parametrize(
    ("total", "every", "steps"),
    [
        (10, None, {2, 4, 6, 8, 10}),
        (11, None, {3, 6, 9, 11}),
        (3, None, {1, 2, 3}),
        (10, 4, {4, 8, 10}),
        (10, 50, {10}),
        (1, None, {1}),
    ],
)
def test_when_the_held_out_loss_is_measured(total, every, steps):
    assert evaluation_steps(total, every) == steps
