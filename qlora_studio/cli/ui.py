"""`qlora-studio ui`: opens the page."""

from __future__ import annotations

import runpy
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
    # the command becomes the page, in this very process: who ends the one has ended the other, on every system
    sys.argv = ["qlora-studio ui", *(["--port", str(port)] if port else []), *([] if open else ["--no-open"])]
    runpy.run_module("qlora_studio.ui", run_name="__main__", alter_sys=False)
