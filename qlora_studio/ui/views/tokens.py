"""What the model will really see: exact text with its trained tokens marked, lengths, and what the limit costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qlora_studio.core.jobs import ExamplePreview, LengthBin, TokeniseReport
from qlora_studio.core.progress import Progress
from qlora_studio.core.words import clock
from qlora_studio.ui.views.html import (
    Html,
    Tile,
    bar,
    card,
    count,
    empty,
    join,
    number,
    plural,
    short_count,
    tag,
    tiles,
)

MARKED = 14
"""Every so many columns of the histogram one says how long its rows are."""


def not_counted(has_data: bool) -> Html:
    if not has_data:
        return empty("No data yet", "Import rows first; then their tokens can be counted.")
    return empty(
        "Not counted yet",
        "Counting renders every row with the model's own template and shows which tokens are trained, how long rows "
        "are, and what would spoil the run.",
    )


def import_first(source: str) -> Html:
    """Instead of the tokens of a file that was opened and not imported."""
    return empty(
        f"{Path(source).name} is not imported yet",
        "Import it; then its tokens are counted and its findings listed here.",
    )


def counting(progress: Progress) -> Html:
    left = "" if progress.phase_seconds_left is None else f", {clock(progress.phase_seconds_left)} left"
    return card(
        "Counting tokens",
        bar(progress.share, "Counting"),
        tag("p", f"{progress.phase or 'starting'}{left} …", class_="qs-small"),
    )


def token_page(report: TokeniseReport, sets: Sequence[str], *, current: bool) -> Html:
    """Figures, histogram and rendered rows of these sets; says so where settings have changed since."""
    share = report.trained_tokens / max(1, report.tokens)
    stale = tag("p", "Settings have changed since this was counted. Count again to see them.", class_="qs-guess bad")
    unusable = report.dropped + report.refused
    figures = tiles(
        [
            Tile("Tokens", short_count(report.tokens), f"{share:.0%} of them trained"),
            Tile("A row", count(report.median), f"median; longest {count(report.longest)}"),
            Tile(
                f"Over {count(report.limit)}",
                count(report.too_long),
                f"{report.dropped} left out, {report.cut} cut",
                "warn" if report.too_long else "",
            ),
            Tile("Not trained", count(unusable), "rows left out", "warn" if unusable else ""),
        ]
    )
    padding = (
        f"Batches of eight as they come would be {report.padding_share:.0%} padding; sorting by length avoids most."
    )
    return join(
        (
            tag("p", "Tokens of ", tag("b", ", ".join(sets)), ".", class_="qs-guess"),
            Html("") if current else stale,
            figures,
            _histogram(report.histogram, report.limit),
            tag("p", padding, class_="qs-small"),
            tag("h3", "The exact text, trained tokens marked", class_="qs-part"),
            tag("div", *(_rendered(row) for row in report.previews), class_="qs-rows", tabindex=0),
        )
    )


def _histogram(bins: Sequence[LengthBin], limit: int) -> Html:
    """Rows by length, with the limit drawn where it falls; nothing to draw without rows."""
    if not bins:
        return Html("")
    most = max(column.rows for column in bins)
    end = bins[-1].last + 1
    every = max(1, len(bins) // MARKED)
    columns = [
        tag(
            "div",
            tag("i", style=f"height:{100 * column.rows / most:.0f}%"),
            tag("small", column.last + 1 if (index + 1) % every == 0 else ""),
            class_="over" if column.first > limit else None,
            title=f"{column.first} to {column.last} tokens: {plural(column.rows, 'row')}",
        )
        for index, column in enumerate(bins)
    ]
    drawn = (
        tag("u", tag("span", f"limit {count(limit)}"), style=f"left:{100 * limit / end:.2f}%") if limit < end else ""
    )
    label = f"Length of the rows in tokens, up to {bins[-1].last}; the limit is {limit}"
    aside = number("" if limit < end else f"limit {count(limit)}, beyond every row")
    return card(
        "Length of the rows, tokens",
        tag("div", *columns, drawn, class_="qs-histogram", role="img", aria_label=label),
        aside=aside,
    )


def _rendered(row: ExamplePreview) -> Html:
    """One row's exact text; trained stretches are underlined and in brackets, so that they show without colour."""
    pieces = [tag("mark" if piece.trained else "span", piece.text) for piece in row.pieces]
    head = f"{row.source} · {plural(row.tokens, 'token')}, {row.trained} trained"
    return tag("article", tag("small", head, class_="qs-number"), tag("pre", *pieces, class_="qs-exact"))
