"""Curves over steps, tokens or seconds as the page's charts draw them: thinned, smoothed, as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

POINTS = 500
"""More points than this per line cannot be seen and only cost bandwidth."""
WINDOW = 0.12
"""Share of all points that a smoothed value looks at, half of them before it and half after."""

Point = tuple[float, float]


def line(
    name: str, colour: int, points: Sequence[Point], *, smooth: bool = False, dots: bool = False
) -> dict[str, Any]:
    """One line in the `colour`-th colour of the page; `smooth` draws a smoothed curve over the faint original."""
    kept = thin(points)
    return {
        "name": name,
        "colour": colour,
        "points": _rounded(kept),
        "smoothed": _rounded(smoothed(kept)) if smooth else None,
        "dots": dots,
    }


def lines(series: Sequence[dict[str, Any]], last_step: int | None = None, unit: str = "step") -> dict[str, Any]:
    """The value of a chart; `last_step` is where the x axis ends, `unit` what it counts."""
    return {"series": [one for one in series if one["points"]], "last": last_step, "unit": unit}


def thin(points: Sequence[Point], limit: int = POINTS) -> list[Point]:
    """At most `limit` points: means of equal stretches, each at its last step."""
    if len(points) <= limit:
        return list(points)
    width = -(-len(points) // limit)
    stretches = [points[start : start + width] for start in range(0, len(points), width)]
    return [(stretch[-1][0], sum(value for _, value in stretch) / len(stretch)) for stretch in stretches]


def smoothed(points: Sequence[Point]) -> list[Point]:
    """The curve without its noise: at each step, the straight line of least squares through the points around it.

    A line and not a mean, and points on both sides, so that a falling loss is neither lagged behind nor flattened at
    its ends: points that lie on a straight line stay where they are. Local linear regression (Cleveland 1979, with
    equal weights), by running sums.
    """
    reach = round(WINDOW * len(points) / 2)
    if reach < 1:
        return list(points)
    xs = [float(index) for index in range(len(points))]
    ys = [value for _, value in points]
    sums = [
        [0.0, *accumulate(column)]
        for column in (ys, [x * y for x, y in zip(xs, ys, strict=True)], xs, [x * x for x in xs])
    ]
    fitted = []
    for index, (step, _) in enumerate(points):
        start, end = max(0, index - reach), min(len(points), index + reach + 1)
        count = end - start
        y, xy, x, xx = (column[end] - column[start] for column in sums)
        spread = count * xx - x * x
        slope = (count * xy - x * y) / spread if spread else 0.0
        fitted.append((step, (y - slope * x) / count + slope * index))
    return fitted


def _rounded(points: Sequence[Point]) -> list[list[float]]:
    return [[step, round(value, 5)] for step, value in points]
