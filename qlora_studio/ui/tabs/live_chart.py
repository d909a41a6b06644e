"""A line chart that is redrawn in place: SVG by `assets/chart.js`, coloured by the page's own variables."""

from __future__ import annotations

from html import escape
from string import Template

import gradio as gr

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
