"""`qlora-studio runs`: the history."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from qlora_studio.cli.jobs import follow
from qlora_studio.cli.show import show_plan, when
from qlora_studio.core.words import clock, gib
from qlora_studio.studio import Studio

app = typer.Typer(help="List past and present runs, and look at one.", no_args_is_help=True)


@app.command("list")
def list_runs() -> None:
    """All runs, newest first."""
    runs = Studio().runs.all()
    if not runs:
        print("There are no runs yet. `qlora-studio demo` makes one.")
        return
    table = Table(
        "Run", "Base", "Rank", "State", "Steps", "Loss", "Held-out", "Time", "Begun", box=None, pad_edge=False
    )
    for run in runs:
        table.add_row(
            run.name,
            run.base or "–",
            str(run.rank or "–"),
            "unreadable" if run.unreadable else run.state,
            f"{run.step}/{run.total_steps}",
            f"{run.loss:.3f}" if run.loss is not None else "–",
            f"{run.held_out:.3f}" if run.held_out is not None else "–",
            clock(run.seconds),
            when(run.created),
        )
    Console().print(table)
    for run in runs:
        if run.unreadable:
            print(f"{run.name} cannot be opened: {run.unreadable}")


@app.command("show")
def show(name: Annotated[str, typer.Argument(help="Name of the run.")]) -> None:
    """One run: settings, plan beside measurement, losses, what happened."""
    console, run = Console(), Studio().runs.open(name)
    progress = run.progress
    console.print(f"[bold]{run.name}[/]  {run.state}  begun {when(run.created)}, {clock(run.seconds)}")
    for section, fields in run.config.model_dump(mode="json").items():
        console.print(
            f"[dim]{section}:[/] " + ", ".join(f"{key} {value}" for key, value in fields.items()), highlight=False
        )
    if progress.plan:
        show_plan(console, progress.plan)
    if progress.probe:
        console.print(
            f"Planned {gib(progress.probe.predicted_bytes)}, largest step measured "
            f"{gib(progress.probe.measured_bytes)}, peak of the run {gib(progress.peak_bytes)}."
        )
    if progress.base_loss is not None:
        console.print(f"Held-out loss of the base: {progress.base_loss:.4f}")
    for step, loss in progress.evaluations:
        console.print(f"Held-out loss at step {step}: {loss:.4f}")
    for retry in progress.retries:
        console.print(f"Step {retry.step} ran out of memory and was computed again with {retry.change}.")
    if progress.message:
        console.print(f"[red]{progress.message}[/] {progress.hint}")
    if run.has_adapter:
        console.print(f"Adapter: {run.folder / 'adapter'}")


@app.command("resume")
def resume(name: Annotated[str, typer.Argument(help="Name of the run.")]) -> None:
    """Go on with a run that was stopped, failed or interrupted, from its newest checkpoint."""
    studio, console = Studio(), Console()
    studio.runs.resume(name)
    state = follow(console, lambda: studio.runs.watch(name), lambda: studio.runs.stop(name))
    console.print(f"[green]{state.state.capitalize()}[/] at step {state.step} of {state.total_steps}.")


@app.command("stop")
def stop(name: Annotated[str, typer.Argument(help="Name of the run.")]) -> None:
    """Ask a run to stop after its current step, with its adapter saved."""
    Studio().runs.stop(name)
    print(f"{name} stops after this step.")
