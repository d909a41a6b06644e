"""`qlora-studio ui`: opens the page."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated

import typer


def ui(
    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65535, help="Port on this machine; empty takes a free one.")
    ] = None,
    open: Annotated[bool, typer.Option("--open/--no-open", help="Open the browser.")] = True,
) -> None:
    """Open the studio in the browser, on this machine only."""
    command = [
        sys.executable,
        "-m",
        "qlora_studio.ui",
        *(["--port", str(port)] if port else []),
        *([] if open else ["--no-open"]),
    ]
    try:
        raise typer.Exit(subprocess.run(command, check=False).returncode)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
