"""A series is a value: what was seen earlier stays, however it grows."""

from __future__ import annotations

import pytest

from qlora_studio.core.series import Series


def test_adding_leaves_the_older_value_as_it_was():
    first = Series().add(1, 3.0).add(2, 2.0)
    second = first.add(3, 1.0)
    other = first.add(3, 9.0)
    assert list(first) == [(1, 3.0), (2, 2.0)]
    assert list(second) == [(1, 3.0), (2, 2.0), (3, 1.0)] and list(other) == [(1, 3.0), (2, 2.0), (3, 9.0)]
    assert list(second.add(4, 0.5))[-1] == (4, 0.5) and len(second) == 3


def test_a_step_that_comes_again_takes_the_place_of_the_later_ones():
    series = Series([(1, 3.0), (2, 2.0), (3, 1.0)])
    assert list(series.add(2, 2.5)) == [(1, 3.0), (2, 2.5)]
    assert list(series.add(3, 1.5)) == [(1, 3.0), (2, 2.0), (3, 1.5)]
    assert list(series.up_to(2)) == [(1, 3.0), (2, 2.0)] and list(series.up_to(0)) == [] and len(series) == 3


def test_it_reads_like_a_tuple():
    series = Series([(1, 3.0), (2, 2.0), (3, 1.0)]).up_to(2)
    assert series[0] == (1, 3.0) and series[-1] == (2, 2.0)
    assert series[-5:] == ((1, 3.0), (2, 2.0)) and series[1:] == ((2, 2.0),) and series[::2] == ((1, 3.0),)
    with pytest.raises(IndexError):
        series[2]
    assert series == ((1, 3.0), (2, 2.0)) and series != ((1, 3.0),) and not Series() and Series() == ()
    assert hash(series) == hash(((1, 3.0), (2, 2.0))) and repr(series) == "Series([(1, 3.0), (2, 2.0)])"


def test_ten_thousand_points_share_one_list():
    series = Series()
    for step in range(10_000):
        series = series.add(step, 0.0)
    assert len(series) == 10_000 == len(series._points)
