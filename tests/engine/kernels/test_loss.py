"""The loss in chunks against torch's own, its gradient too, and the targets of rows worked out by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from qlora_studio.core.example import IGNORED
from qlora_studio.engine.kernels import loss
from qlora_studio.engine.kernels.loss import (
    ChunkedCrossEntropy,
    Targets,
    add_rows,
    find_targets,
    next_token_losses,
    sum_by_row,
)


@pytest.mark.parametrize("chunk", [1, 3, 64, 128, 256])
@pytest.mark.parametrize("count", [0, 1, 64, 70, 130])
def test_losses_and_gradients_are_cross_entropy_s_in_chunks_of_any_size(count, chunk):
    torch.manual_seed(count)
    hidden, head, weights = torch.randn(count, 8), torch.randn(21, 8), torch.randn(count)
    targets = torch.randint(0, 21, (count,))
    ours, theirs = hidden.clone().requires_grad_(), hidden.double().requires_grad_()
    found = ChunkedCrossEntropy.apply(ours, head, targets, chunk)
    wanted = F.cross_entropy(theirs @ head.double().t(), targets, reduction="none")
    assert (found.dtype, found.shape) == (torch.float32, (count,))
    torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=1e-5)
    (found * weights).sum().backward()
    (wanted * weights.double()).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad.float(), rtol=1e-5, atol=1e-5)


def test_the_gradient_is_of_the_hidden_states_format_and_made_only_where_it_is_wanted():
    hidden, head, targets = torch.randn(5, 8).bfloat16(), torch.randn(21, 8).bfloat16(), torch.arange(5)
    plain = ChunkedCrossEntropy.apply(hidden, head, targets, 64)
    assert plain.grad_fn is None
    losses = ChunkedCrossEntropy.apply(hidden.requires_grad_(), head.requires_grad_(), targets, 64)
    (kept,) = losses.grad_fn.saved_tensors
    assert torch.equal(losses, plain) and (kept.shape, kept.dtype) == ((5, 8), torch.bfloat16)
    losses.sum().backward()
    assert head.grad is None and hidden.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("count", "chunk", "shapes"),
    [(70, 64, [64, 64]), (64, 64, [64]), (1, 256, [64]), (130, 256, [192]), (300, 256, [256, 64]), (70, 256, [128])],
)
def test_on_a_processor_products_have_few_shapes(monkeypatch, count, chunk, shapes):
    seen = []

    def note(rows, missing):
        found = add_rows(rows, missing)
        seen.append(len(found))
        return found

    monkeypatch.setattr(loss, "add_rows", note)
    ChunkedCrossEntropy.apply(torch.randn(count, 4), torch.randn(9, 4), torch.zeros(count, dtype=torch.long), chunk)
    assert seen == [one for shape in shapes for one in (shape, shape)], "of the states and of their targets"


def test_rows_of_zeros_are_added_below():
    rows = torch.ones(2, 3)
    assert add_rows(rows, 0) is rows
    assert add_rows(rows, 2).tolist() == [[1] * 3, [1] * 3, [0] * 3, [0] * 3]


def as_lists(targets: Targets):
    return targets.places.tolist(), targets.tokens.tolist(), targets.slots.tolist(), targets.table


X = IGNORED


@pytest.mark.parametrize(
    ("labels", "starts", "expected"),
    [
        ([[X, X, 7, 8]], [0], ([1, 2], [7, 8], [0, 1], (1, 2))),
        ([[5, 6]], [0], ([0], [6], [0], (1, 1))),  # the first token is nobody's next
        ([[X, 4], [X, 5, X, 6]], [0, 2], ([0, 2, 4], [4, 5, 6], [0, 2, 3], (2, 2))),
        ([[X, 4], [X, 5]], [0, 10], ([0, 10], [4, 5], [0, 1], (2, 1))),
        ([[X], [X, 0]], [0, 1], ([1], [0], [1], (2, 1))),
        ([[3]], [0], ([], [], [], (1, 1))),
    ],
)
def test_targets_stand_one_token_before_what_is_trained(labels, starts, expected):
    found = find_targets(labels, starts)
    assert as_lists(found) == expected and found.places.dtype == torch.long
    assert as_lists(found.sent(lambda tensor: tensor + 1)) == (
        *([number + 1 for number in numbers] for numbers in expected[:3]),
        expected[3],
    )


def test_the_losses_of_each_row_are_summed():
    targets = find_targets([[X, 1, 2], [X], [X, 3]], [0, 3, 4])
    assert sum_by_row(torch.tensor([1.0, 2, 4]), targets).tolist() == [3, 0, 4]
    hidden, head = torch.randn(2, 3, 8), torch.randn(9, 8)
    targets = find_targets([[X, 1, 2], [X, X, 5]], [0, 3])
    each = [F.cross_entropy(hidden[row, place] @ head.t(), torch.tensor(label)) for row, place, label in
            ((0, 0, 1), (0, 1, 2), (1, 1, 5))]  # fmt: skip
    found = next_token_losses(hidden, head, targets)
    torch.testing.assert_close(found, torch.stack([each[0] + each[1], each[2]]))
