"""Following a job from the terminal: Ctrl-C asks it to stop, what fails is said in a sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import typer
from rich.console import Console

from qlora_studio.cli.show import Watcher
from qlora_studio.core.events import Event
from qlora_studio.core.progress import Progress


def follow(console: Console, events: Callable[[], Iterator[Event]], stop: Callable[[], None]) -> Progress:
    """Shows a job to its end. The first Ctrl-C asks it to stop and waits; the second leaves it to itself.

    Raises typer.Exit with code 1 where the job failed.
    """
    watcher = Watcher(console)
    try:
        state = watcher.follow(events())
    except KeyboardInterrupt:
        console.print("Stopping after this step; the adapter will be saved. Ctrl-C again leaves it to finish alone.")
        stop()
        state = watcher.follow(events())
    if state.state == "failed":
        print(f"Error: {state.message} {state.hint}".rstrip(), file=sys.stderr)
        raise typer.Exit(1)
    return state
