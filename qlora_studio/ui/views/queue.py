"""What waits for the card, and what a sweep came to."""

from __future__ import annotations

from collections.abc import Sequence

from qlora_studio.core.runs import RunSummary, RunView, best_first, differing_settings
from qlora_studio.core.words import clock
from qlora_studio.ui.fields import label
from qlora_studio.ui.views.html import Html, empty, gib, number, table, tag
from qlora_studio.ui.views.side import state_chip


def line_card(waiting: Sequence[RunSummary], training: RunSummary | None) -> Html:
    """The runs that wait, the next first."""
    if not waiting:
        return empty(
            "No run waits", "“Queue” on the Train page has a run wait for the card; a sweep makes several at once."
        )
    state = f"behind “{training.title}”" if training else "the card is free: start the queue, or let the next one begin"
    rows = [
        (number(position), tag("b", run.title), run.base or "–", number(run.rank or "–"))
        for position, run in enumerate(waiting, 1)
    ]
    return Html(
        tag("p", f"{len(waiting)} waiting, {state}.", class_="qs-small")
        + table(("", "Run", "Base", "Rank"), rows, "Runs that wait")
    )


def results_table(runs: Sequence[RunView]) -> Html:
    """Runs with the settings in which they differ and what came of each, the best held-out loss first."""
    differing = [(field, values) for field, values in differing_settings(runs) if field != "saving.name"]
    order = sorted(range(len(runs)), key=lambda index: best_first(runs[index]))
    rows = []
    for index in order:
        run, best = runs[index], runs[index].progress.held_out.best
        rows.append(
            (
                tag("b", run.title),
                *(number(values[index]) for _, values in differing),
                number(f"{best[1]:.4f}" if best else "–"),
                number(best[0] if best else "–"),
                state_chip(run.state),
                number(clock(run.seconds)),
                number(gib(run.progress.peak_bytes) if run.progress.peak_bytes else "–"),
            )
        )
    headings = ("Run", *(label(field) for field, _ in differing), "Best eval", "at step", "State", "Time", "Peak")
    return table(headings, rows, "Results of these runs")
