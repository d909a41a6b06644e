"""`qlora-studio queue`: runs that wait for the card, one after the other."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from qlora_studio.cli.show import print_table, when
from qlora_studio.studio import Studio

app = typer.Typer(
    help="Runs that wait for the card: `train --queue` and `train --sweep` add them.", no_args_is_help=True
)
Name = Annotated[str, typer.Argument(help="Name of the run.")]


@app.command("list")
def list_waiting() -> None:
    """The run at work and those that wait, in their order."""
    studio = Studio()
    at_work = studio.runs.at_work()
    names = [name for name in studio.queue.names() if name != at_work]  # one that begins at this moment
    if at_work:
        print(f"At work: {at_work}")
    if not names:
        print("No run waits.")
        return
    table = Table("", "Run", "Base", "Rank", "Added", box=None, pad_edge=False)
    runs = {run.name: run for run in studio.runs.all()}
    for position, name in enumerate(names, 1):
        run = runs[name]
        table.add_row(str(position), escape(name), run.base or "–", str(run.rank or "–"), when(run.created))
    print_table(table)
    if not at_work:
        print("Nothing is at work: `qlora-studio queue start` starts the first.")


@app.command("add")
def add(name: Name) -> None:
    """Have a run that was paused, stopped or failed wait for going on."""
    studio = Studio()
    studio.queue.add_again(name)
    print(f"{name} waits, number {studio.queue.names().index(name) + 1} in the queue.")


@app.command("remove")
def remove(name: Name) -> None:
    """Have a run wait no longer. One that never began is deleted."""
    Studio().queue.remove(name)
    print(f"{name} waits no longer.")


@app.command("move")
def move(
    name: Name, position: Annotated[int, typer.Argument(help="Its new position; 1 is the next to start.")]
) -> None:
    """Change the order."""
    Studio().queue.move(name, position)
    print(f"{name} is number {Studio().queue.names().index(name) + 1} in the queue.")


@app.command("start")
def start() -> None:
    """Start the first run that waits; the others follow by themselves, also where one fails."""
    started = Studio().queue.start_next()
    print(f"{started} has begun." if started else "Nothing was started: a run is at work, or none waits.")
