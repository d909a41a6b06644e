"""`qlora-studio plan`: what a run would take of the card."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qlora_studio.cli import options as op
from qlora_studio.cli.bases import look_up
from qlora_studio.cli.show import print_table, show_plan
from qlora_studio.core.words import gib
from qlora_studio.studio import Studio


@op.takes_methods
def plan(
    model: op.Model = None,
    rank: op.Rank = None,
    memory: op.Memory = None,
    max_length: op.MaxLength = None,
    set: op.Set = None,
    all_cards: Annotated[bool, typer.Option("--all-cards", help="One line for every usual card.")] = False,
    all_models: Annotated[bool, typer.Option("--all-models", help="One line for every known model.")] = False,
    methods: dict[str, Any] | None = None,
) -> None:
    """Show the memory plan of a run, item by item, without starting it. Exit code 1 where it does not fit."""
    studio = Studio()
    config = op.build_config(
        studio, rank, memory, {"model.base": model, "data.max_length": max_length, **(methods or {})}, set
    )
    console = Console()
    if all_models:
        show_table(studio.plans.for_all_models(config), by_card=False)
        return
    base = look_up(studio, console, config.model)
    if all_cards:
        show_table(studio.plans.for_all_cards(config), by_card=True)
        return
    made = studio.plans.make(config)
    show_plan(console, made)
    for limit in base.limits:
        console.print(f"[yellow]Note[/]: {escape(limit)}")
    if base.weights == "missing":
        console.print(f"[yellow]It could not be trained as it is[/]: {base.weights_problem}")
    if not made.fits:
        raise typer.Exit(1)


def show_table(rows: Iterable[Any], *, by_card: bool) -> None:
    """One plan a line: what it takes of its budget, micro-batch in tokens, checkpointed layers, what else would fit."""
    titles = (
        "Card" if by_card else "Model",
        "Takes",
        "Budget",
        "",
        "Micro-batch",
        "Checkpointed",
        "Longest row",
        "Largest rank",
    )
    table = Table(*titles, box=None, pad_edge=False)
    for column in (*table.columns[:3], *table.columns[4:6]):
        column.no_wrap = True
    for row in rows:
        made = row.plan
        name = (row.card.name if row.card else "CPU") if by_card else row.shape.name
        if made is None:
            table.add_row(name, "–", "–", f"[red]{escape(row.problem)}[/]")
            continue
        table.add_row(
            name,
            gib(made.estimate.total_bytes),
            gib(made.budget_bytes),
            "[green]fits[/]" if made.fits else "[red]too much[/]",
            str(made.micro_batch_tokens) if made.fits else "–",
            f"{made.checkpointed_layers}/{made.layers}" if made.fits else "–",
            str(made.longest_context or "–"),
            str(made.largest_rank or "–"),
        )
    print_table(table)
