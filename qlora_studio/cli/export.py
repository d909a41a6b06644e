"""`qlora-studio export`: the adapter, the merged model, a GGUF file or all of them, in a folder of yours."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from qlora_studio.cli import options as op
from qlora_studio.cli.evaluate import read_prompts
from qlora_studio.cli.jobs import follow
from qlora_studio.core.errors import StudioError
from qlora_studio.core.exports import (
    EXPORT_KINDS,
    GGUF_CHOICES,
    MERGE_CHOICES,
    PACK_PARTS,
    ExportOptions,
    LoadCommand,
    find_export_kind,
    find_gguf,
    find_merge,
)
from qlora_studio.core.progress import Progress
from qlora_studio.core.verdict import could_agree_better, describe_losses, find_verdict
from qlora_studio.core.words import gib
from qlora_studio.studio import Studio

COLOURS = {"good": "green", "warn": "yellow", "bad": "red"}
CHECK_PROMPTS = ("What can you do?", "How do I boil an egg?", "Explain what a bicycle is.")
AUTO = "auto"


def export(
    run: Annotated[str, typer.Argument(help="Name of the run.")],
    to: Annotated[str, typer.Option("--to", help="A new or empty folder.")],
    what: Annotated[
        str, typer.Option("--what", help=" ".join(f"{kind.name}: {kind.description}" for kind in EXPORT_KINDS))
    ] = "merged",
    merge: Annotated[
        str,
        typer.Option(
            "--merge",
            help=" ".join(f"{choice.name}: {choice.description}" for choice in MERGE_CHOICES)
            + " auto: the one that suits this run, with the reason.",
        ),
    ] = AUTO,
    gguf: Annotated[
        str,
        typer.Option("--gguf", help="; ".join(f"{choice.name}: {choice.description}" for choice in GGUF_CHOICES) + "."),
    ] = GGUF_CHOICES[0].name,
    importance: Annotated[
        bool | None,
        typer.Option(
            "--importance/--no-importance",
            help="Fit a GGUF file's K-quants by an importance matrix, measured on the run's own training rows. Done unless "
            "you say no, where these rows are here.",
        ),
    ] = None,
    parts: Annotated[
        str, typer.Option("--parts", help=f"What a pack holds, of {', '.join(PACK_PARTS)}, with commas between.")
    ] = ",".join(PACK_PARTS),
    prompts: Annotated[
        str | None, typer.Option("--prompts", help="A text file with one prompt a line for the check.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Compare what is exported with what you chatted with.")
    ] = True,
    checkpoint: op.Checkpoint = "",
) -> None:
    """Write the adapter, the merged model, a GGUF file or all of them, checked against what you chatted with."""
    studio, console = Studio(), Console()
    kind = find_export_kind(what)
    into, why = studio.exports.suggest_merge(run) if merge == AUTO else (find_merge(merge).into, "")
    chosen = tuple(part.strip() for part in parts.split(",") if part.strip())
    weighs = studio.exports.suggest_importance(run) if importance is None else importance
    options = ExportOptions(kind, into, find_gguf(gguf), chosen, checkpoint, weighs)
    options.check()
    compared_prompts = (read_prompts(prompts) or list(CHECK_PROMPTS)) if check and kind.compares_with_chat else []
    readiness = studio.exports.readiness(run, options, to, len(compared_prompts))
    console.print(f"[bold]{escape(readiness.sentence)}[/]")
    if why and kind.merges:
        console.print(why)
    blocks = [
        problem for problem in readiness.blocks if problem.field != "model.base"
    ]  # the job fetches a missing base
    if blocks:
        raise StudioError.of(blocks)
    job = studio.exports.start(run, options, to, compared_prompts)
    state = follow(console, lambda: studio.jobs.watch(job), lambda: studio.jobs.stop(job))
    show_export(console, state)
    if state.exported:
        show_commands(console, studio.exports.load_commands(run, options, to))


def show_export(console: Console, state: Progress) -> None:
    for done in state.checks:
        console.print(
            f"Check ({done.what}): same next token as in the chat at {done.same_top1:.1%} of {done.positions} positions, "
            f"KL {done.kl:.4f} nats; {done.identical_answers} of {done.answers} answers the same to the last word."
            f"{describe_losses(done)}"
        )
        verdict = find_verdict(done)
        console.print(f"[{COLOURS[verdict.kind]}]{verdict.sentence}[/] {verdict.hint}".rstrip())
        if could_agree_better(done):
            console.print("The way there: --merge as-chatted.")
    for exported in state.exported:
        console.print(f"[green]Exported[/] {exported.what}, {gib(exported.bytes)}: {exported.path}")


def show_commands(console: Console, commands: list[LoadCommand]) -> None:
    for command in commands:
        console.print(f"[bold]{command.program}[/]")
        console.print(command.text, markup=False, highlight=False, soft_wrap=True)
