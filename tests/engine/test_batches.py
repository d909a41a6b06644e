"""Steps depend on seed and data alone; micro-batches keep to their bound."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from qlora_studio.core.example import IGNORED, Example
from qlora_studio.core.steps import plan_steps
from qlora_studio.engine.batches import collate, micro_batches
from tests.engine.conftest import make_config, make_examples


def optim(**changes):
    return make_config(**{f"optim__{name}": value for name, value in changes.items()}).optim


def test_every_row_is_seen_as_often_as_epochs_say():
    lengths = [random.Random(1).randint(5, 50) for _ in range(37)]
    steps = plan_steps(lengths, optim(batch_tokens=100, epochs=3))
    assert Counter(row for step in steps for row in step.rows) == dict.fromkeys(range(37), 3)
    assert steps[-1].epoch == 3.0
    assert all(sum(lengths[row] for row in step.rows) <= 100 for step in steps)


def test_half_an_epoch_sees_half_the_rows_once():
    steps = plan_steps([10] * 20, optim(batch_tokens=20, epochs=0.5))
    assert len({row for step in steps for row in step.rows}) == 10 and len(steps) == 5


def test_the_order_follows_the_seed_and_differs_by_epoch():
    first = plan_steps([10] * 30, optim(batch_tokens=300, epochs=2, seed=1))
    assert first == plan_steps([10] * 30, optim(batch_tokens=300, epochs=2, seed=1))
    assert first != plan_steps([10] * 30, optim(batch_tokens=300, epochs=2, seed=2))
    assert first[0].rows != first[1].rows


def test_max_steps_ends_the_run():
    assert len(plan_steps([10] * 30, optim(batch_tokens=20, epochs=9, max_steps=4))) == 4


def test_a_row_longer_than_the_batch_is_a_step_of_its_own():
    steps = plan_steps([5, 500, 5], optim(batch_tokens=10, epochs=1))
    assert Counter(len(step.rows) for step in steps)[1] >= 1
    assert sorted(row for step in steps for row in step.rows) == [0, 1, 2]


@pytest.mark.parametrize("bound", [50, 64, 200])
def test_micro_batches_keep_rows_times_longest_within_the_bound(bound):
    lengths = [random.Random(2).randint(5, 50) for _ in range(40)]
    groups = micro_batches(range(40), lengths, bound)
    assert sorted(row for group in groups for row in group) == list(range(40))
    assert all(len(group) * max(lengths[row] for row in group) <= bound for group in groups)


def test_collate_pads_right_and_labels_only_what_is_trained():
    ids, labels = collate([Example((7, 8, 9), ((1, 3),)), Example((5,), ())], make_examples.__globals__["FP32"].torch)
    assert ids.tolist() == [[7, 8, 9], [5, 0, 0]]
    assert labels.tolist() == [[IGNORED, 8, 9], [IGNORED] * 3]
