"""Copies by hash and near copies by sketch, beside what plain Python makes of the same rows."""

from __future__ import annotations

import zlib
from array import array

import numpy as np
import pytest

from qlora_studio.data.cleaning import duplicates
from qlora_studio.data.cleaning.duplicates import NearDuplicates, find_equal


@pytest.mark.parametrize(
    ("hashes", "pairs"),
    [
        ([], []),
        ([7], []),
        ([7, 8, 9], []),
        ([7, 7], [(1, 0)]),
        ([9, 2**64 - 1, 7, 9, 2**64 - 1, 9, 8, 7], [(3, 0), (4, 1), (5, 0), (7, 2)]),
    ],
)
def test_each_later_equal_is_paired_with_the_first_in_order(hashes, pairs):
    assert find_equal(array("Q", hashes)) == pairs


ROWS = [[f"w{(row + 1) * (place + 3) % 17}" for place in range(12 + row)] for row in range(4)]


def test_a_sketch_is_the_minimum_over_the_shingles_of_three_words_for_each_factor():
    numbers = [[zlib.crc32(word.encode()) for word in row] for row in ROWS]
    whole = 1 << 64
    expected = []
    for row in numbers:
        shingles = {
            ((a * 0x9E3779B97F4A7C15 + b) * 0x9E3779B97F4A7C15 + c) % whole
            for a, b, c in zip(row, row[1:], row[2:], strict=False)
        }
        factors = duplicates._factors().tolist()
        expected.append([min((one * factor % whole) >> 24 for one in shingles) % 65536 for factor in factors])
    begins = np.cumsum([0, *map(len, numbers[:-1])])
    found = duplicates._sketch(np.concatenate(numbers).astype(np.uint64), begins)
    assert found.tolist() == expected and found.dtype == np.uint16


def test_the_factors_are_odd_and_no_two_the_same():
    factors = duplicates._factors().tolist()
    assert len(set(factors)) == 64 and all(factor % 2 for factor in factors)


@pytest.mark.parametrize(("words", "compared"), [(11, False), (12, True)])
def test_rows_of_twelve_words_and_more_are_compared(words, compared):
    near, text = NearDuplicates(), " ".join(f"word{number}" for number in range(words))
    for row in (3, 8):
        near.remember(text, row)
    assert near.pairs() == ([(8, 3)] if compared else [])


def test_rows_are_alike_however_often_their_words_were_let_go(monkeypatch):
    texts = {
        row: " ".join(f"{'same' if row % 10 == 0 else row}{number}" for number in range(30)) for row in range(0, 60, 5)
    }
    found = []
    for held in (1 << 20, 40):
        monkeypatch.setattr(duplicates, "_HELD_WORDS", held)
        near = NearDuplicates()
        for row, text in texts.items():
            near.remember(text.upper(), row)
            assert len(near.held) <= held
        found.append(near.pairs())
        assert near.pairs() == found[-1], "asked again it says the same"
    assert found == [[(row, 0) for row in range(10, 60, 10)]] * 2


@pytest.mark.parametrize(("equal", "alike"), [(45, False), (46, True), (64, True)])
def test_sketches_are_alike_from_46_of_64_places_on(equal, alike):
    one = np.arange(64, dtype=np.uint16)
    other = np.where(np.arange(64) < equal, one, one + 1000).astype(np.uint16)
    near = NearDuplicates()
    near.rows, near.sketches = array("q", [4, 9]), [np.stack((one, other))]
    assert near.pairs() == ([(9, 4)] if alike else [])


def test_sketches_without_four_equal_places_side_by_side_are_not_compared():
    """Banding: 48 of 64 places are equal, but every band of four has one that is not."""
    one = np.arange(64, dtype=np.uint16)
    other = np.where(np.arange(64) % 4 == 3, one + 1000, one).astype(np.uint16)
    near = NearDuplicates()
    near.rows, near.sketches = array("q", [4, 9]), [np.stack((one, other))]
    assert near.pairs() == []


def test_nothing_remembered_is_no_pair():
    assert NearDuplicates().pairs() == []


def test_words_are_let_go_when_there_are_more_than_may_be_held(monkeypatch):
    monkeypatch.setattr(duplicates, "_HELD_WORDS", 24)
    near, held = NearDuplicates(), []
    for row in range(4):
        near.remember(" ".join(f"w{row}x{number}" for number in range(12)), row)
        held.append((len(near.held), len(near.sketches)))
    assert held == [(12, 0), (24, 0), (0, 1), (12, 1)]
