"""`qlora-studio evaluate`: what the training changed, in numbers and answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from qlora_studio.cli import options as op
from qlora_studio.cli.jobs import follow
from qlora_studio.core.chat import Sampling
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import EvaluateReport
from qlora_studio.core.progress import Progress
from qlora_studio.core.words import without_quotes
from qlora_studio.studio import Studio


def evaluate(
    run: Annotated[str, typer.Argument(help="Name of the run.")],
    prompts: Annotated[
        str | None, typer.Option("--prompts", help="A text file with one prompt a line, answered by both.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Longest answer in tokens.")] = 128,
    checkpoint: op.Checkpoint = "",
) -> None:
    """Held-out loss and answers of base and tuned model, on the same rows with the same seed."""
    studio, console = Studio(), Console()
    lines = read_prompts(prompts)
    job = studio.runs.evaluate(run, lines, Sampling(max_new_tokens=max_new_tokens), checkpoint)
    state = follow(console, lambda: studio.jobs.watch(job), lambda: studio.jobs.stop(job))
    for sample in state.samples:
        console.print(f"[bold]{sample.side}[/] · {escape(sample.prompt)}\n{escape(sample.answer)}\n")
    show_losses(console, state)


def show_losses(console: Console, state: Progress) -> None:
    """Held-out loss of base and adapter, where the run holds rows out."""
    report = state.report
    if isinstance(report, EvaluateReport) and report.base_loss is not None and report.tuned_loss is not None:
        base, tuned = report.base_loss, report.tuned_loss
        console.print(
            f"Held-out loss: base {base:.4f}, tuned {tuned:.4f} ({tuned - base:+.4f}) over {report.rows} rows."
        )


def read_prompts(file: str | None) -> list[str]:
    """The non-empty lines of a text file."""
    if file is None:
        return []
    path = Path(without_quotes(file)).expanduser()
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StudioError(
            f"The prompts cannot be read: {getattr(error, 'strerror', None) or 'they are not UTF-8'}.",
            "Give a text file.",
            where=file,
        ) from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise StudioError("This file holds no prompts.", "Write one prompt a line.", where=file)
    return prompts
