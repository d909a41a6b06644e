"""Several runs side by side in a terminal: their settings and results, their losses, a sweep's results."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from qlora_studio.core.runs import RunView, best_first, differing_settings
from qlora_studio.core.series import Along
from qlora_studio.core.sweep import describe_value
from qlora_studio.core.words import clock, gib


def comparison_table(runs: Sequence[RunView]) -> Table:
    """The settings in which runs differ and what came of each, a column for each run."""
    table = Table("", *(escape(run.name) for run in runs), box=None, pad_edge=False)
    for field, values in differing_settings(runs):
        table.add_row(field, *(escape(describe_value(value)) for value in values))
    table.add_section()
    results: dict[str, list[str]] = {
        "state": [str(run.state) for run in runs],
        "steps": [f"{run.progress.step}/{run.progress.total_steps}" for run in runs],
        "tokens": [f"{run.progress.tokens[-1][1]:,.0f}" if run.progress.tokens else "–" for run in runs],
        "loss": [f"{run.progress.last.loss:.4f}" if run.progress.last else "–" for run in runs],
        "held-out loss": [
            f"{run.progress.evaluations[-1][1]:.4f}" if run.progress.evaluations else "–" for run in runs
        ],
        "peak memory": [gib(run.progress.peak_bytes) for run in runs],
        "time": [clock(run.seconds) for run in runs],
    }
    for title, shown in results.items():
        table.add_row(title, *shown)
    return table


def curves_table(runs: Sequence[RunView], by: Along, rows: Sequence[tuple[float, list[float | None]]]) -> Table:
    """A line for each mark, a column for each run."""
    curves = Table("step" if by == "step" else by, *(escape(run.name) for run in runs), box=None, pad_edge=False)
    for mark, losses in rows:
        shown_mark = clock(mark) if by == "seconds" else f"{mark:,.0f}"
        curves.add_row(shown_mark, *(f"{loss:.4f}" if loss is not None else "–" for loss in losses))
    return curves


def results_table(runs: Sequence[RunView]) -> Table:
    """A line for each run, the best held-out loss first, with the settings that tell them apart."""
    differing = [(field, values) for field, values in differing_settings(runs) if field != "saving.name"]
    table = Table(
        "Run",
        *(field for field, _ in differing),
        "Held-out",
        "at step",
        "State",
        "Time",
        "Peak",
        box=None,
        pad_edge=False,
    )
    table.columns[0].overflow = "fold"
    for index in sorted(range(len(runs)), key=lambda index: best_first(runs[index])):
        run, best = runs[index], runs[index].progress.held_out.best
        table.add_row(
            escape(run.name),
            *(escape(str(values[index])) for _, values in differing),
            f"{best[1]:.4f}" if best else "–",
            str(best[0]) if best else "–",
            run.state,
            clock(run.seconds),
            gib(run.progress.peak_bytes) if run.progress.peak_bytes else "–",
        )
    return table
