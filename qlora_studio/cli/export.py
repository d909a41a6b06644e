"""`qlora-studio export`: the adapter or the merged model, in a folder of yours."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from qlora_studio.cli import options as op
from qlora_studio.cli.evaluate import read_prompts
from qlora_studio.cli.jobs import follow
from qlora_studio.core.errors import StudioError
from qlora_studio.core.exports import EXPORT_KINDS, find_export_kind
from qlora_studio.core.jobs import MergeInto
from qlora_studio.core.progress import Progress
from qlora_studio.core.verdict import could_agree_better, describe_losses, find_verdict
from qlora_studio.core.words import gib
from qlora_studio.studio import Studio

COLOURS = {"good": "green", "warn": "yellow", "bad": "red"}
CHECK_PROMPTS = ("What can you do?", "How do I boil an egg?", "Explain what a bicycle is.")


def export(
    run: Annotated[str, typer.Argument(help="Name of the run.")],
    to: Annotated[str, typer.Option("--to", help="A new or empty folder.")],
    what: Annotated[
        str, typer.Option("--what", help=" ".join(f"{kind.name}: {kind.says}" for kind in EXPORT_KINDS))
    ] = "merged",
    merge: Annotated[
        str,
        typer.Option(
            "--merge",
            help="original: into the base's own weights; as-chatted: into the 4-bit rounded ones you chatted with.",
        ),
    ] = "original",
    prompts: Annotated[
        str | None, typer.Option("--prompts", help="A text file with one prompt a line for the check.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Compare the merged model with what you chatted with.")
    ] = True,
    checkpoint: op.Checkpoint = "",
) -> None:
    """Write the adapter or the merged model, checked against what you chatted with."""
    kinds: dict[str, MergeInto] = {"original": "original", "as-chatted": "as_chatted"}
    compares = find_export_kind(what).compares_with_chat
    if merge not in kinds:
        raise StudioError(f"There is no merge '{merge}'.", "Choose original or as-chatted.", field="--merge")
    studio, console = Studio(), Console()
    asked = (read_prompts(prompts) or list(CHECK_PROMPTS)) if check and compares else []
    readiness = studio.exports.readiness(run, what, to, len(asked))
    console.print(f"[bold]{escape(readiness.sentence)}[/]")
    blocks = [
        problem for problem in readiness.blocks if problem.field != "model.base"
    ]  # the job fetches a missing base
    if blocks:
        raise StudioError.of(blocks)
    job = studio.exports.start(run, what, to, kinds[merge], asked, checkpoint)
    show_export(console, follow(console, lambda: studio.jobs.watch(job), lambda: studio.jobs.stop(job)))


def show_export(console: Console, state: Progress) -> None:
    for done in state.checks:
        console.print(
            f"Check ({done.what}): same next token as in the chat at {done.same_top1:.1%} of {done.positions} positions, "
            f"KL {done.kl:.4f} nats; {done.identical_answers} of {done.answers} answers the same to the last word."
            f"{describe_losses(done)}"
        )
        verdict = find_verdict(done)
        console.print(f"[{COLOURS[verdict.kind]}]{verdict.says}[/] {verdict.hint}".rstrip())
        if could_agree_better(done):
            console.print("The way there: --merge as-chatted.")
    for exported in state.exported:
        console.print(f"[green]Exported[/] {exported.what}, {gib(exported.bytes)}: {exported.path}")
