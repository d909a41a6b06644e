"""`qlora-studio plan`: what a run would take of the card."""

from __future__ import annotations

import typer
from rich.console import Console

from qlora_studio.cli import options as op
from qlora_studio.cli.show import show_plan
from qlora_studio.studio import Studio


def plan(
    model: op.Model = None,
    rank: op.Rank = None,
    memory: op.Memory = None,
    max_tokens: op.MaxTokens = None,
    set: op.Set = None,
) -> None:
    """Show the memory plan of a run, item by item, without starting it. Exit code 1 where it does not fit."""
    studio = Studio()
    config = op.build_config(studio, rank, memory, {"model.base": model, "data.max_tokens": max_tokens}, set)
    made = studio.plan(config)
    show_plan(Console(), made)
    if not made.fits:
        raise typer.Exit(1)
