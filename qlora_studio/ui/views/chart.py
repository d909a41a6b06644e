"""A line chart that is redrawn in place: SVG by `assets/chart.js`, coloured by the page's own variables."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from string import Template
from typing import Any

import gradio as gr

POINTS = 500
"""More points than this per line cannot be seen and only cost bandwidth."""

Point = tuple[int, float]
FRAME = Template(
    '<div class="qs-card qs-chart" data-title="$title" data-hint="$hint" data-height="$height">'
    '<header><b>$title</b><span class="qs-chart-legend"></span></header>'
    '<div class="qs-chart-frame"><div class="qs-chart-area"></div><pre class="qs-chart-tip" hidden></pre></div></div>'
)
"""Filled here, with words of our own only: Gradio forgets a component's props when a page is opened late, and would
evaluate what its own template gets as code."""


def live_chart(script: str, title: str, hint: str, elem_id: str, height: int = 250) -> gr.HTML:
    """Lines over steps. Its value is what `lines` makes; data reaches the page as JSON, never as a template."""
    return gr.HTML(
        None,
        html_template=FRAME.substitute(title=escape(title), hint=escape(hint), height=height),
        js_on_load=script,
        elem_id=elem_id,
    )


def line(
    name: str, colour: int, points: Sequence[Point], *, smooth: bool = False, dots: bool = False
) -> dict[str, Any]:
    """One line in the `colour`-th colour of the page; `smooth` draws a running mean over the faint original."""
    return {
        "name": name,
        "colour": colour,
        "points": [[step, round(value, 5)] for step, value in thin(points)],
        "smooth": smooth,
        "dots": dots,
    }


def lines(series: Sequence[dict[str, Any]], last_step: int | None = None) -> dict[str, Any]:
    """The value of a chart; `last_step` is where the x axis ends."""
    return {"series": [one for one in series if one["points"]], "last": last_step}


def thin(points: Sequence[Point], limit: int = POINTS) -> list[Point]:
    """At most `limit` points: means of equal stretches, each at its last step."""
    if len(points) <= limit:
        return list(points)
    width = -(-len(points) // limit)
    stretches = [points[start : start + width] for start in range(0, len(points), width)]
    return [(stretch[-1][0], sum(value for _, value in stretch) / len(stretch)) for stretch in stretches]
