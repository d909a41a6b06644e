"""`qlora-studio adopt`: an adapter from elsewhere, as a run to chat with, evaluate and export."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from qlora_studio.cli.jobs import follow
from qlora_studio.studio import Studio


def adopt(
    folder: Annotated[str, typer.Argument(help="A PEFT folder: adapter_config.json and adapter_model.safetensors.")],
    base: Annotated[
        str, typer.Option("--base", help="The base it was trained on; empty takes the one that the adapter names.")
    ] = "",
    name: Annotated[str, typer.Option("--name", help="Name of the run; empty takes the folder's.")] = "",
) -> None:
    """Make a run of a LoRA adapter that was trained elsewhere, to chat with it, evaluate and export it."""
    studio, console = Studio(), Console()
    job = studio.runs.adopt(folder, base, name)
    follow(console, lambda: studio.jobs.watch(job), lambda: studio.jobs.stop(job))
    console.print(f"[green]Adopted[/] as the run '{job.name}'. Chat with it: [bold]qlora-studio chat {job.name}[/]")
