"""How rows share micro-batches, worked out by hand."""

from __future__ import annotations

import pytest

from qlora_studio.core.micro_batches import cut_rows, filled, tokens_of


def test_packed_rows_are_filled_to_the_next_multiple_of_64():
    assert [filled(tokens) for tokens in (0, 1, 63, 64, 65, 128, 129)] == [0, 64, 64, 64, 128, 128, 192]


def test_padding_is_counted_as_tokens():
    assert tokens_of([10, 30, 20], packed=False) == 90
    assert tokens_of([10, 30, 20], packed=True) == 64


LENGTHS = [100, 40, 30, 90, 20, 100]


@pytest.mark.parametrize(
    ("rows", "bound", "packed", "groups"),
    [
        # positions by falling length: 0 and 5 (100), 3 (90), 1 (40), 2 (30), 4 (20)
        ([0, 1, 2, 3, 4, 5], 128, True, [[0, 4], [5], [3, 2], [1]]),
        ([0, 1, 2, 3, 4, 5], 64, True, [[0], [5], [3], [1, 4], [2]]),
        ([0, 1, 2, 3, 4, 5], 200, False, [[0, 5], [3, 1], [2, 4]]),
        ([0, 1, 2, 3, 4, 5], 199, False, [[0], [5], [3, 1], [2, 4]]),
        ([5, 0], 64, True, [[1], [0]]),  # rows of one length by their number, as positions in `rows`
        ([], 64, True, []),
    ],
)
def test_rows_are_grouped_the_longest_first(rows, bound, packed, groups):
    assert cut_rows(rows, LENGTHS, bound, packed=packed) == groups
