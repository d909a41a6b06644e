"""What a search for the learning rate does and what it found."""

from __future__ import annotations

from collections.abc import Sequence

from qlora_studio.core.jobs import RateReport
from qlora_studio.core.progress import Progress
from qlora_studio.ui.views.html import Html, bar, card, chip, error_card, number, table, tag


def rates(progress: Progress | None, report: RateReport | None, problems: Sequence[str]) -> Html:
    """The search as it goes, else what it found, else why it found nothing; before the first what it is for."""
    if progress is not None:
        doing = (
            f"{progress.phase or 'starting'} … {f'{progress.done} of {progress.total} steps' if progress.total else ''}"
        )
        return card("Learning rates", bar(progress.share, "Search"), tag("p", doing, class_="qs-small"))
    if problems:
        return error_card(problems, "No learning rate was found")
    if report is not None:
        return _found(report)
    text = "Not sure of the learning rate? A few steps at five rates on these rows show which one learns best."
    return tag("p", text, class_="qs-small")


def _found(report: RateReport) -> Html:
    """Every rate with its loss, and a bar from the base's loss down to the best."""
    losses = [point.loss for point in report.points if point.loss is not None]
    top = report.base_loss if report.base_loss is not None else max(losses, default=0.0)
    span = max(top - min(losses, default=top), 1e-9)
    rows = [
        (
            number(f"{point.rate:g}"),
            number(f"{point.loss:.4f}" if point.loss is not None else "not finite"),
            bar((top - point.loss) / span if point.loss is not None else 0.0, f"Gain at {point.rate:g}"),
            chip("best choice", "good") if point.rate == report.rate else "",
        )
        for point in report.points
    ]
    kind = "Held-out loss" if report.held_out else "Training loss"
    base = f"base {report.base_loss:.4f}" if report.base_loss is not None else ""
    shown = table(("Rate", kind, "Gain over the base", ""), rows, "Learning rates that were tried")
    return card("Learning rates", shown, tag("p", report.sentence, class_="qs-small"), aside=base)
