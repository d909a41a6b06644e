"""Sizes and times in words, at the edges where the unit changes."""

from __future__ import annotations

import pytest

from qlora_studio.core.plan import GIB, MIB
from qlora_studio.core.words import about, clock, gib, gib_of, without_quotes


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 MiB"), (MIB, "1 MiB"), (GIB - 1, "1024 MiB"), (GIB, "1.00 GiB"), (7.43 * GIB, "7.43 GiB"),
        (-2 * GIB, "-2.00 GiB"), (-3 * MIB, "-3 MiB"),
    ],
)  # fmt: skip
def test_a_size(size, text):
    assert gib(size) == text


def test_a_size_to_so_many_digits():
    assert (gib(1.26 * GIB, 1), gib(1.26 * GIB, 0)) == ("1.3 GiB", "1 GiB")


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (1.2 * GIB, 4 * GIB, "1.2 of 4.0 GiB"),
        (96 * MIB, 512 * MIB, "96 of 512 MiB"),
        (205 * MIB, 4 * GIB, "0.2 of 4.0 GiB"),
        (2 * GIB, 205 * MIB, "2.0 of 0.2 GiB"),
    ],
)
def test_both_sides_stand_in_one_unit(part, whole, text):
    assert gib_of(part, whole) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"), (0, "0 s"), (59.4, "59 s"), (59.6, "1 m 00 s"), (60, "1 m 00 s"), (185, "3 m 05 s"),
        (3599, "59 m 59 s"), (3600, "1 h 00 m"), (3725, "1 h 02 m"), (7320, "2 h 02 m"),
    ],
)  # fmt: skip
def test_a_time(seconds, text):
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "under a minute"), (59, "under a minute"), (60, "1 min"), (299, "5 min"), (59 * 60, "59 min"),
        (3600, "1 h"), (130 * 60, "2 h 10 min"), (134 * 60, "2 h 10 min"), (180 * 60, "3 h"),
        (47 * 3600, "47 h"), (48 * 3600, "2 days"), (72 * 3600, "3 days"), (30 * 24 * 3600, "30 days"),
        (11 * 3600 + 600, "11 h 10 min"),
    ],
)  # fmt: skip
def test_a_time_that_is_foretold_is_no_finer_than_it_is_known(seconds, text):
    assert about(seconds) == text


@pytest.mark.parametrize(
    ("path", "plain"),
    [
        ('"/a b/c"', "/a b/c"), (" '/a' ", "/a"), ('" /a "', "/a"), ("/a", "/a"), ('"', '"'), ("", ""), ('""', ""),
        ("'/a\"", "'/a\""), ("a'a", "a'a"),
    ],
)  # fmt: skip
def test_a_path_loses_the_quotes_around_it_and_no_others(path, plain):
    assert without_quotes(path) == plain
