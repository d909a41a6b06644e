"""Which step was best, and when patience ends."""

from __future__ import annotations

import math

import pytest

from qlora_studio.core.held_out import HeldOut

CURVE = ((10, 2.0), (20, 1.5), (30, 1.5), (40, 1.8))


def test_the_best_is_the_first_of_the_lowest():
    held_out = HeldOut(2.5, CURVE)
    assert (held_out.best, held_out.newest, held_out.since_best) == ((20, 1.5), (40, 1.8), 2)
    assert held_out.best_of([30, 40]) == (30, 1.5) and held_out.best_of([99]) is None


@pytest.mark.parametrize(("patience", "ends"), [(None, False), (1, True), (2, True), (3, False)])
def test_patience_counts_evaluations_since_the_best(patience, ends):
    assert HeldOut(2.5, CURVE).is_exhausted(patience) is ends


def test_what_is_not_finite_is_never_the_best():
    held_out = HeldOut(2.5, ((1, math.nan), (2, 3.0), (3, math.inf)))
    assert held_out.best == (2, 3.0) and held_out.since_best == 1
    never = HeldOut(2.5, ((1, math.nan),))
    assert (never.best, never.since_best, never.beats_base) == (None, 1, False)


@pytest.mark.parametrize(
    ("held_out", "beats"),
    [
        (HeldOut(), None),
        (HeldOut(2.0), None),
        (HeldOut(None, CURVE), None),
        (HeldOut(2.0, CURVE), True),
        (HeldOut(1.5, CURVE), False),
    ],
)
def test_a_run_beats_its_base_only_where_its_best_is_lower(held_out, beats):
    assert held_out.beats_base is beats
    assert held_out.add(50, 0.1).best == (50, 0.1), "adding leaves the older value as it was"
