"""The memory plan: a stacked bar against the budget, what each part is, why, and how it was confirmed."""

from __future__ import annotations

from qlora_studio.core.measured import differences
from qlora_studio.core.plan import MemoryPart, MemoryPlan
from qlora_studio.core.progress import Progress
from qlora_studio.ui.views.html import (
    Html,
    bar,
    big_of,
    bullets,
    card,
    chip,
    count,
    error_card,
    gib,
    gib_of,
    join,
    more,
    number,
    tag,
)


def plan_card(plan: MemoryPlan) -> Html:
    """The bill of the next run against its budget."""
    verdict = (
        chip(f"fits · {gib(plan.spare_bytes)} spare", "good")
        if plan.fits
        else chip(f"over budget by {gib(plan.missing_bytes)}", "bad")
    )
    return card(
        "Memory plan",
        big_of(plan.estimate.total_bytes, plan.budget_bytes),
        _stack(plan),
        _legend(plan),
        _changes(plan),
        _reasons(plan),
        aside=verdict,
        label="Memory plan",
        kind="" if plan.fits else "qs-over",
    )


def _coloured_parts(plan: MemoryPlan) -> list[tuple[int, MemoryPart]]:
    """The items that take anything, each with the number of its colour."""
    return [(index % 10, part) for index, part in enumerate(plan.estimate.parts) if part.bytes]


def _stack(plan: MemoryPlan) -> Html:
    """The items as one bar, with the budget as a mark on it."""
    total, budget = plan.estimate.total_bytes, plan.budget_bytes
    scale = max(total, budget, 1)
    return tag(
        "div",
        *(
            tag(
                "i",
                class_=f"s{colour}",
                style=f"width:{100 * part.bytes / scale:.2f}%",
                title=f"{part.label}: {gib(part.bytes)}",
            )
            for colour, part in _coloured_parts(plan)
        ),
        tag("u", style=f"left:{100 * budget / scale:.2f}%", title=f"Budget: {gib(budget)}"),
        class_="qs-stack",
        role="img",
        aria_label=f"Planned memory {gib_of(total, budget)}",
    )


def _legend(plan: MemoryPlan) -> Html:
    return tag(
        "ul",
        *(
            tag(
                "li",
                tag("i", class_=f"s{colour}"),
                tag("span", part.label),
                tag("b", gib(part.bytes), class_="qs-number"),
                title=part.basis,
            )
            for colour, part in _coloured_parts(plan)
        ),
        class_="qs-legend",
    )


def no_plan(problems: list[str]) -> Html:
    return error_card(problems, "There is no plan for these settings yet")


def _changes(plan: MemoryPlan) -> Html | str:
    if plan.fits:
        return ""
    changes = plan.changes or ("Choose a smaller model, shorter rows or a smaller rank.",)
    return tag("div", tag("b", "What would make it fit"), bullets(changes), class_="qs-advice")


def _reasons(plan: MemoryPlan) -> Html:
    beyond = []
    if plan.longest_context:
        beyond.append(f"The longest row that would fit has {count(plan.longest_context)} tokens.")
    if plan.largest_rank:
        beyond.append(f"The largest rank that would fit is {count(plan.largest_rank)}.")
    origins = [
        join((tag("b", f"{part.label}: "), f"{part.basis}."))
        for part in plan.estimate.parts
        if part.bytes and part.basis
    ]
    return more("Why so, and what would fit", bullets([*plan.reasons, *beyond]), bullets(origins, "quiet"))


def proof_card(progress: Progress) -> Html:
    """Planned beside what the largest step and the run really took; nothing before the plan is made."""
    plan = progress.plan
    if plan is None:
        return Html("")
    rows = [("Planned", plan.comparable_bytes)]
    if progress.probe is not None:
        rows.append(("Largest step, measured", progress.probe.measured_bytes))
    if progress.peak_bytes:
        rows.append(("Peak" if progress.ended else "Peak so far", progress.peak_bytes))
    top = max(plan.comparable_budget_bytes, *(size for _, size in rows), 1)
    bars = [
        part
        for name, size in rows
        for part in (
            tag("span", name),
            bar(size / top, name, "warn" if size > plan.comparable_budget_bytes else ""),
            tag("b", gib(size), class_="qs-number"),
        )
    ]
    return card(
        "Plan and measurement",
        tag("div", *bars, class_="qs-bars"),
        *(tag("p", sentence, class_="qs-small") for sentence in differences(progress)),
        aside=number(f"budget {gib(plan.comparable_budget_bytes)}"),
    )
