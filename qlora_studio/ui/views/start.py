"""What a person reads before a start: the data, what stands in the way, what the run will take."""

from __future__ import annotations

from collections.abc import Sequence

from qlora_studio.core.dataset import DatasetReport
from qlora_studio.core.progress import Progress
from qlora_studio.core.readiness import Readiness
from qlora_studio.ui.views.html import Html, bar, bullets, card, error_card, join, plural, tag


def learns_from(sets: Sequence[DatasetReport]) -> Html:
    """The sets the next run learns from."""
    if not sets:
        return tag("p", "No data chosen yet: begin on the Data page.", class_="qs-guess bad")
    named = ", ".join(f"{report.name} ({plural(report.rows, 'row')})" for report in sets)
    return tag("p", "Learns from ", tag("b", named), ".", class_="qs-guess")


def start_line(readiness: Readiness | None, blocks: Sequence[str]) -> Html:
    """One sentence beside Start: what will be trained and what it takes, or what stands against it."""
    if blocks:
        more = f" (and {len(blocks) - 1} more)" if len(blocks) > 1 else ""
        return tag("p", f"Start waits: {blocks[0]}{more}", class_="qs-blocked")
    if readiness is None:
        return Html("")
    if readiness.over_budget is not None:
        return tag("p", f"Start is blocked: {readiness.over_budget.message}", class_="qs-blocked")
    return tag("p", readiness.sentence, class_="qs-ready")


def notes(blocks: Sequence[str], unusual: Sequence[str]) -> Html:
    """Everything that stands against a start, and what may be meant and rarely is."""
    against = error_card(blocks, "This keeps the run from starting") if blocks else ""
    odd = card("Look at this before you start", bullets(unusual), kind="qs-odd") if unusual else ""
    return join((against, odd))


def looking_up(base: str, progress: Progress) -> Html:
    """In the place of the plan while a base model is looked up."""
    doing = tag("p", f"{progress.phase or 'starting'} …", class_="qs-small")
    return card(
        "Memory plan", tag("p", "Looking up ", tag("b", base), " first."), bar(progress.share, "Look-up"), doing
    )
