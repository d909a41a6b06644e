"""`qlora-studio push`: a finished export into LM Studio, into Ollama, or to the hub."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from qlora_studio.cli.jobs import follow
from qlora_studio.core.jobs import PushReport
from qlora_studio.core.push import DESTINATIONS, find_destination
from qlora_studio.studio import Studio


def push(
    folder: Annotated[str, typer.Argument(help="The folder of an export.")],
    to: Annotated[str, typer.Option("--to", help=" ".join(f"{one.name}: {one.description}" for one in DESTINATIONS))],
    name: Annotated[
        str,
        typer.Option("--name", help="What it is called there: me/model for the hub and LM Studio, model for Ollama."),
    ] = "",
    public: Annotated[bool, typer.Option("--public", help="On the hub: for everybody to see.")] = False,
) -> None:
    """Hand a finished export on; nothing of it is changed, and nothing is sent but what you name, where you name it."""
    studio, console = Studio(), Console()
    job = studio.exports.push(folder, find_destination(to), name, public=public)
    state = follow(console, lambda: studio.jobs.watch(job), lambda: studio.jobs.stop(job))
    if isinstance(state.report, PushReport):
        console.print(f"[green]Handed on:[/] {escape(state.report.place)}")
