"""`qlora-studio doctor`: whether this machine can train, and what to do where it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from qlora_studio.cli import options as op
from qlora_studio.cli.bases import look_up
from qlora_studio.cli.jobs import follow
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.doctor import Check, diagnostics
from qlora_studio.core.jobs import DoctorReport
from qlora_studio.studio import Studio

MARKS = {"ok": "[green]✓[/]", "warn": "[yellow]![/]", "bad": "[red]✗[/]"}


def doctor(
    model: op.Model = None,
    plain: Annotated[bool, typer.Option("--plain", help="Plain text without secrets, to paste elsewhere.")] = False,
) -> None:
    """Check card, driver, torch, 4-bit kernels, memory and disk. Exit code 1 where something is broken."""
    studio, console = Studio(), Console()
    config = TrainConfig().replace({"model.base": model}) if model else None
    if config is not None:
        look_up(studio, console, config.model)
    checks = studio.machine.check(config)
    if not plain:
        show(console, checks)
    job = studio.machine.check_engine()
    state = follow(console, lambda: studio.jobs.watch(job), lambda: studio.jobs.stop(job))
    engine = list(state.report.checks) if isinstance(state.report, DoctorReport) else []
    if plain:
        print(diagnostics([*checks, *engine], str(studio.home.root), str(Path.home())))
    else:
        show(console, engine)
    if any(check.state == "bad" for check in (*checks, *engine)):
        raise typer.Exit(1)


def show(console: Console, checks: list[Check]) -> None:
    for check in checks:
        console.print(f"{MARKS[check.state]} [bold]{escape(check.name)}[/]: {escape(check.finding)}")
        if check.remedy:
            console.print(f"    {escape(check.remedy)}")
