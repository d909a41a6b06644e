"""`qlora-studio train`: a data file becomes an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from qlora_studio.cli import options as op
from qlora_studio.cli.jobs import follow
from qlora_studio.cli.show import show_plan
from qlora_studio.core.errors import StudioError
from qlora_studio.core.words import clock
from qlora_studio.studio import Studio


def train(
    file: Annotated[str, typer.Argument(help="A data file, or the name of an imported data set.")],
    model: op.Model = None,
    rank: op.Rank = None,
    memory: op.Memory = None,
    format: op.Format = None,
    column: op.Column = None,
    max_length: op.MaxLength = None,
    epochs: op.Epochs = None,
    seed: op.Seed = None,
    name: op.Name = None,
    set: op.Set = None,
    accept: Annotated[
        list[str] | None, typer.Option("--accept", help="A finding you accept by name, such as secret.")
    ] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Start although the plan does not fit.")] = False,
) -> None:
    """Tune a model on your rows. Ctrl-C stops after the current step with the adapter saved."""
    studio, console = Studio(), Console()
    changes = {
        "model.base": model, "data.max_length": max_length, "optim.epochs": epochs, "optim.seed": seed,
        "saving.name": name,
        "data.format": format, "data.columns": op.parse_columns(column) or None,
    }  # fmt: skip
    config = op.build_config(studio, rank, memory, changes, set)
    studio.bases.find(config.model.base)
    plan = studio.plans.make(config)
    if file in {report.name for report in studio.data.sets()} and not Path(file).exists():
        dataset = file
    else:
        report = studio.data.import_rows(file, format=config.data.format, columns=config.data.columns)
        dataset = report.name
        console.print(f"{report.rows} rows as {report.format} ({report.reason})")
    show_plan(console, plan)
    if not plan.fits and not anyway:
        raise StudioError("The plan does not fit, so nothing was started.", "Change what it names, or add --anyway.")
    accepted = [*config.data.accepted, *(accept or [])]
    config = config.replace({"data.sources": [{"name": dataset}], "data.accepted": accepted})
    studio.data.check(config)
    run = studio.runs.start(config)
    console.print(f"Run [bold]{run}[/]")
    state = follow(console, lambda: studio.runs.watch(run), lambda: studio.runs.stop(run))
    view = studio.runs.open(run)
    loss = f", loss {state.last.loss:.3f}" if state.last else ""
    console.print(f"[green]{state.state.capitalize()}[/] after {state.step} steps and {clock(view.seconds)}{loss}.")
    if view.has_adapter:
        console.print(f"Adapter: {view.folder / 'adapter'}")
        console.print(f"Next: qlora-studio chat {run}   or   qlora-studio export {run} --to FOLDER")
