"""Steps depend on seed and data alone; micro-batches keep to their bound."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from qlora_studio.core.example import Example
from qlora_studio.core.micro_batches import GRAIN
from qlora_studio.core.steps import Step, plan_steps
from qlora_studio.engine.batches import Layout, plan_unit_steps
from tests.engine.conftest import make_config

PADDED = Layout(torch.device("cpu"))
PACKED = Layout(torch.device("cpu"), packed=True)


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
    groups = PADDED.cut(range(40), lengths, bound)
    assert sorted(row for group in groups for row in group) == list(range(40))
    assert all(len(group) * max(lengths[row] for row in group) <= bound for group in groups)


def test_steps_take_rows_in_the_order_of_the_seeded_shuffle():
    """Written out, so that another order, however well shuffled, is noticed: a resumed run would see other rows."""
    order = list(range(6))
    random.Random("42:0").shuffle(order)
    assert order == [4, 2, 1, 5, 3, 0]
    steps = plan_steps([10] * 6, optim(batch_tokens=20, epochs=1, seed=42))
    assert [step.rows for step in steps] == [(4, 2), (1, 5), (3, 0)]
    assert [step.epoch for step in steps] == pytest.approx([2 / 6, 4 / 6, 1])


def test_a_step_may_cross_the_end_of_an_epoch():
    first, second = list(range(3)), list(range(3))
    random.Random("7:0").shuffle(first)
    random.Random("7:1").shuffle(second)
    steps = plan_steps([10] * 3, optim(batch_tokens=40, epochs=2, seed=7))
    assert [step.rows for step in steps] == [(*first, second[0]), tuple(second[1:])]


def test_a_step_is_full_when_the_next_row_would_not_fit():
    assert len(plan_steps([10] * 4, optim(batch_tokens=20, epochs=1))) == 2
    assert len(plan_steps([10] * 4, optim(batch_tokens=19, epochs=1))) == 4


def test_units_stand_whole_in_one_step():
    units = [(0, 1), (2, 3), (4, 5)]
    steps = plan_unit_steps(units, [10] * 6, optim(batch_tokens=40, epochs=1, seed=1))
    assert [len(step.rows) for step in steps] == [4, 2]
    assert all(step.rows[place : place + 2] in units for step in steps for place in range(0, len(step.rows), 2))
    assert sorted(row for step in steps for row in step.rows) == list(range(6))


def test_units_of_one_row_are_rows():
    lengths = [random.Random(3).randint(5, 50) for _ in range(20)]
    settings = optim(batch_tokens=100, epochs=2)
    assert plan_unit_steps([(row,) for row in range(20)], lengths, settings) == plan_steps(lengths, settings)


def test_micro_batches_are_places_in_the_step_longest_first():
    lengths = [5, 9, 7, 3, 9]
    assert PADDED.cut((4, 0, 2, 1), lengths, 18) == [[3, 0], [2, 1]]
    assert PADDED.cut((4, 0, 2, 1), lengths, 17) == [[3], [0], [2, 1]]
    assert PADDED.cut((3, 3), lengths, 1) == [[0], [1]]


def test_the_largest_micro_batch_of_a_run_counts_padding_then_rows():
    lengths = [30, 10, 11, 30, 15, 15]
    steps = [Step((0,), 0.3), Step((1, 2), 0.6), Step((3,), 0.8), Step((4, 5), 1.0)]
    assert PADDED.largest(steps, lengths, 30) == (4, 5)
    assert PADDED.largest(steps, lengths, 1) == (0,)
    assert PADDED.largest(steps[1:2], lengths, 22) == (2, 1)


def test_padded_rows_are_padded_right_and_only_what_is_trained_has_a_target():
    examples = [Example((5,), ()), Example((1, 2), ()), Example((7, 8, 9), ((1, 3),))]
    batch = PADDED.collate(examples, (2, 0))
    assert batch.ids.tolist() == [[7, 8, 9], [5, 0, 0]]
    assert (batch.rows, batch.spans, batch.documents) == ((2, 0), ((0, 3), (3, 4)), None)
    assert batch.targets.places.tolist() == [0, 1] and batch.targets.tokens.tolist() == [8, 9]
    assert (batch.targets.slots.tolist(), batch.targets.table) == ([0, 1], (2, 2))


def test_packed_rows_lie_side_by_side_with_positions_of_their_own():
    examples = [Example((5, 6), ((0, 2),)), Example((7, 8, 9), ((1, 3),))]
    batch = PACKED.collate(examples, (1, 0))
    assert batch.ids.tolist() == [[7, 8, 9, 5, 6] + [0] * (GRAIN - 5)]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, *range(GRAIN - 5)]]
    assert batch.documents.spans == batch.spans == ((0, 3), (3, 5))
    # 5 begins a row: it is nobody's next token, though it is trained
    assert batch.targets.places.tolist() == [0, 1, 3] and batch.targets.tokens.tolist() == [8, 9, 6]
    assert (batch.targets.slots.tolist(), batch.targets.table) == ([0, 1, 2], (2, 2))
    assert PACKED.collate(examples, (1,)).ids.tolist() == [[7, 8, 9] + [0] * (GRAIN - 3)]


def test_flash_attention_is_told_every_cut_and_the_padding_as_a_row():
    examples = [Example((5, 6), ()), Example((7, 8, 9), ())]
    documents = Layout(torch.device("cpu"), packed=True, varlen=True).collate(examples, (1, 0)).documents
    assert documents.starts.tolist() == [0, 3, 5, GRAIN]
    assert (documents.starts.dtype, documents.longest) == (torch.int32, GRAIN - 5)


@pytest.mark.parametrize("bound", [64, 128, 1024])
def test_packed_micro_batches_hold_every_row_once_within_the_bound_in_few_shapes(bound):
    lengths = [random.Random(2).randint(5, 60) for _ in range(40)]
    groups = PACKED.cut(range(40), lengths, bound)
    assert sorted(row for group in groups for row in group) == list(range(40))
    sizes = [PACKED.tokens_of([lengths[row] for row in group]) for group in groups]
    assert max(sizes) <= bound
    assert all(size % GRAIN == 0 for size in sizes)
    full = sum(sum(lengths[row] for row in group) for group in groups[:-1])
    assert bound == 64 or full >= 0.9 * bound * (len(groups) - 1)


def test_a_row_longer_than_the_bound_stands_alone_and_is_filled_up():
    assert PACKED.cut((0, 1, 2), [200, 30, 20], 64) == [[0], [1, 2]]
    assert PACKED.tokens_of([200]) == 256
