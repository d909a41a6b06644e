"""Mixtures worked out by hand: whole passes first, then rows until the share is reached."""

from __future__ import annotations

import pytest

from qlora_studio.data.sets.mix import Part, Taken, mix


@pytest.mark.parametrize(
    ("parts", "counts"),
    [
        # the largest mixture: the smaller of size / weight times each weight
        ([("a", 1, [1] * 10, 1), ("b", 1, [1] * 4, 1)], [4, 4]),
        ([("a", 3, [1] * 10, 1), ("b", 1, [1] * 4, 1)], [10, 3]),
        ([("a", 1, [1] * 10, 1), ("b", 1, [1] * 4, 2)], [8, 8]),
        ([("a", 1, [1] * 10, 1), ("b", 1, [1] * 4, 3)], [10, 10]),
        ([("a", 1, [1] * 10, 1), ("b", 1, [], 1)], [10, 0]),
        ([("a", 1, [], 1)], [0]),
        ([], []),
        ([("a", 0.1, [1] * 3, 1), ("b", 0.3, [1] * 9, 1)], [3, 9]),  # 3 / 0.1 is not 9 / 0.3 in floats
        ([("a", 0.3, [1] * 9, 1), ("b", 0.1, [1] * 3, 1)], [9, 3]),
        ([("a", 1, [1] * 7, 1), ("b", 0.7, [1] * 70, 1)], [7, 5]),
    ],
)
def test_each_part_has_its_share_of_the_largest_mixture(parts, counts):
    chosen, taken = mix([Part(*part) for part in parts], 7)
    assert [len(rows) for rows in chosen] == counts
    assert [(one.rows, one.size, one.of_rows) for one in taken] == [
        (count, count, len(part[2])) for count, part in zip(counts, parts, strict=True)
    ]
    for rows, (_, _, sizes, repeats) in zip(chosen, parts, strict=True):
        assert rows == sorted(rows) and all(rows.count(row) <= repeats for row in rows)
        assert set(rows) <= set(range(len(sizes)))


def test_a_whole_part_is_taken_whole_and_in_order():
    chosen, taken = mix([Part("a", 1, [1] * 5), Part("b", 1, [1] * 2, 10)], 7)
    assert chosen[0] == [0, 1, 2, 3, 4]
    assert [chosen[1].count(row) for row in (0, 1)] in ([3, 2], [2, 3])
    assert taken == (Taken("a", 5, 5, 5, 0.5, 1.0), Taken("b", 5, 2, 5, 0.5, 2.5))


def test_of_tokens_rows_are_taken_while_half_of_the_next_still_fits():
    # b has a share of 10 tokens: two rows of 4 make 8, and half of a third would be 10, which is not over
    chosen, taken = mix([Part("a", 1, [10]), Part("b", 1, [4] * 9)], 7)
    assert (len(chosen[1]), taken[1].size, taken[1].epochs) == (3, 12, 12 / 36)
    chosen, _ = mix([Part("a", 1, [9]), Part("b", 1, [4] * 9)], 7)
    assert len(chosen[1]) == 2


def test_the_rows_follow_from_seed_and_name():
    def rows(name, seed):
        return mix([Part("x", 1, [1] * 10), Part(name, 1, [1] * 100)], seed)[0][1]

    assert rows("a", 1) == rows("a", 1)
    assert len({tuple(rows(name, seed)) for name in "ab" for seed in (1, 2)}) == 4
