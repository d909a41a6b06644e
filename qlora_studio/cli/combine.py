"""`qlora-studio combine`: the adapters of several runs, with weights, as a new run."""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from rich.console import Console

from qlora_studio.cli.jobs import follow
from qlora_studio.core.exports import parse_weights
from qlora_studio.studio import Studio


def combine(
    runs: Annotated[list[str], typer.Argument(help="Two or more runs of one base, or run@checkpoint.")],
    weights: Annotated[
        str, typer.Option("--weights", help="One for each run, with commas between, such as 0.7,0.3; empty: 1 each.")
    ] = "",
    how: Annotated[
        Literal["cat", "linear"],
        typer.Option(
            "--how", help="cat: exactly the weighted sum of what they change. linear: their factors added, at one rank."
        ),
    ] = "cat",
    name: Annotated[str, typer.Option("--name", help="Name of the new run; empty makes one of theirs.")] = "",
) -> None:
    """Make a run of the adapters of several, to chat with it, evaluate and export it."""
    studio, console = Studio(), Console()
    job = studio.combinations.start(list(zip(runs, parse_weights(weights, len(runs)), strict=True)), how, name)
    follow(console, lambda: studio.jobs.watch(job), lambda: studio.jobs.stop(job))
    console.print(f"[green]Combined[/] as the run '{job.name}'. Chat with it: [bold]qlora-studio chat {job.name}[/]")
