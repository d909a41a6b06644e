"""Micro-batches of two small rows, tensor by tensor, packed and padded."""

from __future__ import annotations

import pytest
import torch

from qlora_studio.core.example import Example
from qlora_studio.core.steps import Step
from qlora_studio.engine.batches import Layout
from qlora_studio.engine.kernels.documents import Documents

CPU = torch.device("cpu")
ROWS = [Example((9, 9), ()), Example((3, 4, 5), ((1, 3),)), Example((6, 7), ((1, 2),))]


def test_padded_rows_lie_below_each_other():
    batch = Layout(CPU).collate(ROWS, (1, 2))
    assert (batch.rows, batch.spans) == ((1, 2), ((0, 3), (3, 5)))
    assert batch.ids.tolist() == [[3, 4, 5], [6, 7, 0]] and batch.ids.dtype == torch.long
    assert (batch.positions, batch.documents) == (None, None) and list(batch.inputs) == ["input_ids"]
    assert batch.inputs["input_ids"] is batch.ids
    targets = batch.targets
    assert (targets.places.tolist(), targets.tokens.tolist(), targets.slots.tolist(), targets.table) == (
        [0, 1, 3], [4, 5, 7], [0, 1, 2], (2, 2),
    )  # fmt: skip


@pytest.mark.parametrize("repeats", [False, True])
def test_packed_rows_lie_side_by_side_and_are_filled_up(repeats):
    batch = Layout(CPU, packed=True, repeats=repeats).collate(ROWS, (1, 2))
    assert (batch.rows, batch.spans) == ((1, 2), ((0, 3), (3, 5)))
    assert batch.ids.tolist() == [[3, 4, 5, 6, 7, *[0] * 59]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, *range(59)]]
    assert batch.documents == Documents(((0, 3), (3, 5)), None, 0, repeats, [])
    assert batch.inputs == {"input_ids": batch.ids, "position_ids": batch.positions, "documents": batch.documents}
    targets = batch.targets
    assert (targets.places.tolist(), targets.tokens.tolist()) == ([0, 1, 3], [4, 5, 7])


@pytest.mark.parametrize(
    ("lengths", "cuts", "longest"), [((3, 2), [0, 3, 5, 64], 59), ((60, 4), [0, 60, 64], 60), ((64,), [0, 64], 64)]
)
def test_one_kernel_is_told_where_rows_begin_the_filling_as_one_of_its_own(lengths, cuts, longest):
    rows = [Example(tuple(range(1, length + 1)), ()) for length in lengths]
    batch = Layout(CPU, packed=True, varlen=True).collate(rows, range(len(rows)))
    assert batch.documents.starts.tolist() == cuts and batch.documents.starts.dtype == torch.int32
    assert (batch.documents.longest, batch.documents.repeats) == (longest, False)


def test_a_layout_is_padded_and_plain_unless_it_is_told_otherwise():
    assert Layout(CPU) == Layout(CPU, packed=False, varlen=False, repeats=False)


@pytest.mark.parametrize(("packed", "tokens", "largest"), [(False, 40, (0, 3)), (True, 64, (1, 2, 4))])
def test_the_largest_micro_batch_has_most_tokens_and_of_equal_ones_most_rows(packed, tokens, largest):
    lengths, steps = [20, 30, 20, 20, 14], [Step((0, 3), 0.5), Step((1, 2, 4), 1.0)]
    layout = Layout(CPU, packed=packed)
    assert layout.largest(steps, lengths, tokens) == largest
    assert layout.tokens_of([20, 20]) == (64 if packed else 40)
