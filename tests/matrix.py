"""Matrices of cases: a few of them answer at once, all of them are among the slow tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def mostly_slow(cases: Iterable[Any], *quick: Any) -> list[Any]:
    """The cases of a `parametrize`, a tuple for each or a value alone, marked slow but for these.

    Raises:
        ValueError: one of `quick` is no case.
    """
    found = list(cases)
    if missing := [case for case in quick if case not in found]:
        raise ValueError(f"No case: {missing}")
    values = [case if isinstance(case, tuple) else (case,) for case in found]
    return [
        pytest.param(*value, marks=() if case in quick else pytest.mark.slow)
        for case, value in zip(found, values, strict=True)
    ]
