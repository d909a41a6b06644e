"""`qlora-studio runs`: the history."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qlora_studio.cli.jobs import follow
from qlora_studio.cli.run_tables import comparison_table, curves_table, results_table
from qlora_studio.cli.show import print_table, show_plan, when
from qlora_studio.core.diagnosis import diagnose
from qlora_studio.core.errors import StudioError
from qlora_studio.core.measured import differences
from qlora_studio.core.runs import common_answers, losses_at_marks
from qlora_studio.core.series import Along
from qlora_studio.core.words import clock, gib
from qlora_studio.studio import Studio

app = typer.Typer(help="List past and present runs, and look at one.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="Name of the run.")]


@app.command("list")
def list_runs() -> None:
    """All runs, newest first."""
    runs = Studio().runs.all()
    if not runs:
        print("There are no runs yet. `qlora-studio demo` makes one.")
        return
    headings = ("Run", "Base", "Rank", "State", "Steps", "Loss", "Best held-out", "Time", "Begun", "Said of it")
    table = Table(*headings, box=None, pad_edge=False)
    for run in runs:
        table.add_row(
            f"{'★ ' if run.pinned else ''}{run.name}",
            run.base or "–",
            str(run.rank or "–"),
            "unreadable" if run.unreadable else run.state,
            f"{run.step}/{run.total_steps}",
            f"{run.loss:.3f}" if run.loss is not None else "–",
            f"{run.best_held_out:.3f}" if run.best_held_out is not None else "–",
            clock(run.seconds),
            when(run.created),
            escape(" ".join((*(f"#{tag}" for tag in run.tags), run.note.partition("\n")[0][:40]))),
        )
    table.columns[0].overflow = "fold"  # a name is there to be typed
    print_table(table)
    for run in runs:
        if run.unreadable:
            print(f"{run.name} cannot be opened: {run.unreadable}")


@app.command("show")
def show(name: Name) -> None:
    """One run: settings, plan beside measurement, losses, what happened."""
    console, run = Console(), Studio().runs.open(name)
    progress = run.progress
    console.print(
        f"[bold]{escape(run.title)}[/] ({run.name})  {run.state}  begun {when(run.created)}, {clock(run.seconds)}"
    )
    if run.labels.tags or run.labels.note:
        console.print(escape(" ".join((*(f"#{tag}" for tag in run.labels.tags), run.labels.note))))
    for section, fields in run.config.model_dump(mode="json").items():
        console.print(
            f"[dim]{section}:[/] " + ", ".join(f"{key} {value}" for key, value in fields.items()), highlight=False
        )
    if progress.plan:
        show_plan(console, progress.plan)
    if progress.probe:
        console.print(
            f"Planned {gib(progress.probe.predicted_bytes)}, largest step measured "
            f"{gib(progress.probe.measured_bytes)}, peak of the run {gib(progress.peak_bytes)}."
        )
    for sentence in differences(progress):
        console.print(sentence)
    if progress.base_loss is not None:
        console.print(f"Held-out loss of the base: {progress.base_loss:.4f}")
    best = progress.held_out.best
    for step, loss in progress.evaluations:
        marks = [
            word
            for word, it_is in (("best", best and best[0] == step), ("adapter", progress.adapter_step == step))
            if it_is
        ]
        console.print(f"Held-out loss at step {step}: {loss:.4f}" + (f"  ({', '.join(marks)})" if marks else ""))
    for problem in diagnose(progress):
        console.print(f"[yellow]{escape(problem.message)}[/] {escape(problem.hint)}")
    for retry in progress.retries:
        console.print(f"Step {retry.step} ran out of memory and was computed again with {retry.change}.")
    if progress.message:
        console.print(f"[red]{progress.message}[/] {progress.hint}")
    if run.has_adapter:
        console.print(f"Adapter: {run.folder / 'adapter'}")


@app.command("resume")
def resume(name: Name) -> None:
    """Go on with a run that was stopped, failed or interrupted, from its newest checkpoint."""
    studio, console = Studio(), Console()
    studio.runs.resume(name)
    state = follow(console, lambda: studio.runs.watch(name), lambda: studio.runs.stop(name))
    console.print(f"[green]{state.state.capitalize()}[/] at step {state.step} of {state.total_steps}.")


@app.command("stop")
def stop(
    name: Name,
    now: Annotated[
        bool, typer.Option("--now", help="End its worker at once; it can go on from its last checkpoint.")
    ] = False,
) -> None:
    """Ask a run to stop after its current step, with its adapter saved."""
    if now:
        Studio().runs.end_now(name)
        print(f"{name} is ended. `qlora-studio runs resume {name}` goes on from its last checkpoint.")
        return
    Studio().runs.stop(name)
    print(f"{name} stops after this step.")


@app.command("samples")
def samples(name: Name) -> None:
    """Show what a run answered to its sample prompts while it was trained, as a timeline."""
    console, progress = Console(), Studio().runs.open(name).progress
    if not progress.samples:
        print(f"{name} has no sample answers: name prompts with --set evaluation.prompts='first|second'.")
    for prompt in dict.fromkeys(sample.prompt for sample in progress.samples):
        console.print(f"[bold]{escape(prompt)}[/]")
        for sample in progress.samples:
            if sample.prompt == prompt:
                who = "base" if sample.side == "base" else f"step {sample.step}"
                console.print(f"  [dim]{who:>10}[/]  {escape(sample.answer)}")


@app.command("pause")
def pause(name: Name) -> None:
    """Ask a run to leave the card after its current step; `runs resume` goes on with it."""
    Studio().runs.pause(name)
    print(f"{name} is paused after this step.")


@app.command("save")
def save(name: Name) -> None:
    """Ask a run to write a checkpoint after its current step."""
    Studio().runs.save_now(name)
    print(f"{name} writes a checkpoint after this step.")


@app.command("checkpoints")
def checkpoints(
    name: Name,
    pin: Annotated[int | None, typer.Option("--pin", help="Keep the checkpoint of this step.")] = None,
    unpin: Annotated[int | None, typer.Option("--unpin", help="Let the checkpoint of this step go again.")] = None,
) -> None:
    """The checkpoints that a run has kept; `--checkpoint` of chat, evaluate and export takes them by name."""
    studio = Studio()
    for step, pinned in ((pin, True), (unpin, False)):
        if step is not None:
            studio.runs.pin_checkpoint(name, step, pinned=pinned)
    kept = studio.runs.checkpoints(name)
    if not kept:
        print(f"{name} has kept no checkpoint.")
        return
    table = Table("Checkpoint", "Held-out", "", box=None, pad_edge=False)
    for one in kept:
        words = [word for word, it_is in (("best", one.best), ("last", one.newest), ("pinned", one.pinned)) if it_is]
        table.add_row(one.name, f"{one.held_out:.4f}" if one.held_out is not None else "–", ", ".join(words))
    print_table(table)


@app.command("extend")
def extend(
    name: Name,
    epochs: Annotated[float, typer.Option("--epochs", min=0.01, help="How many epochs more.")],
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh", help="A new run from its adapter whose schedule begins anew, instead of a longer schedule."
        ),
    ] = False,
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", help="With --fresh, which weights to begin with: best, last or step-N.")
    ] = "",
    queue: Annotated[bool, typer.Option("--queue", help="Have it wait for the card, behind other runs.")] = False,
) -> None:
    """Train a run for more epochs: on the same curve under a longer schedule, or as a new run with a fresh one."""
    studio, console = Studio(), Console()
    if fresh:
        name = studio.queue.add(studio.runs.anew(name, checkpoint, **{"optim.epochs": epochs, "optim.max_steps": None}))
    else:
        studio.runs.extend(name, epochs)
        studio.queue.add_again(name)
        studio.queue.start_next()
    if queue or name in studio.queue.names():
        print(f"{name} waits in the queue." if name in studio.queue.names() else f"{name} has begun.")
        return
    state = follow(console, lambda: studio.runs.watch(name), lambda: studio.runs.stop(name))
    console.print(f"[green]{state.state.capitalize()}[/] at step {state.step} of {state.total_steps}: {escape(name)}.")


@app.command("rename")
def rename(name: Name, title: Annotated[str, typer.Argument(help="What it shall be called.")]) -> None:
    """Give a run another title. Its name, which commands use, stays."""
    Studio().runs.label(name, title=title.strip())
    print(f"{name} is called '{title.strip()}'." if title.strip() else f"{name} has its first title again.")


@app.command("note")
def note(name: Name, text: Annotated[str, typer.Argument(help="What to remember; empty removes the note.")]) -> None:
    """Write a note to a run."""
    Studio().runs.label(name, note=text.strip())
    print(f"Noted for {name}." if text.strip() else f"{name} has no note.")


@app.command("tag")
def tag(
    name: Name, tags: Annotated[list[str] | None, typer.Argument(help="All its tags; none removes them.")] = None
) -> None:
    """Set the tags of a run."""
    labels = Studio().runs.label(name, tags=tuple(dict.fromkeys(one.strip().lstrip("#") for one in tags or [])))
    print(f"{name}: {' '.join(f'#{one}' for one in labels.tags) or 'no tags'}")


@app.command("pin")
def pin(name: Name, off: Annotated[bool, typer.Option("--off", help="Unpin it.")] = False) -> None:
    """Keep a run above the others, safe from deletion."""
    Studio().runs.label(name, pinned=not off)
    print(f"{name} is {'no longer ' if off else ''}pinned.")


@app.command("delete")
def delete(
    names: Annotated[list[str], typer.Argument(help="Names of the runs.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete runs with their checkpoints and adapters. What was exported elsewhere stays."""
    studio = Studio()
    for name in names:
        size = gib(studio.runs.size_bytes(name))
        for sentence in studio.references.to_run(name):
            print(sentence)
        if not yes and not typer.confirm(f"Delete {name} and all it holds ({size})?"):
            print(f"{name} stays.")
            continue
        studio.runs.delete(name)
        print(f"{name} is deleted; {size} are free again.")


@app.command("compare")
def compare(
    names: Annotated[list[str], typer.Argument(help="Names of two or more runs.")],
    by: Annotated[
        Along, typer.Option("--by", help="Lay the losses side by side at the same steps, tokens or seconds.")
    ] = "step",
    held_out: Annotated[bool, typer.Option("--held-out", help="Held-out losses instead of the training's.")] = False,
) -> None:
    """Show the settings in which runs differ, what came of each, and their losses and answers side by side."""
    studio, console = Studio(), Console()
    runs = [studio.runs.open(name) for name in names]
    console.print(comparison_table(runs))
    if rows := losses_at_marks(runs, by, held_out=held_out):
        what = "Held-out loss, the last" if held_out else "Training loss, mean"
        console.print(f"\n{what} since the mark before:")
        console.print(curves_table(runs, by, rows))
    for prompt, answers in common_answers([studio.runs.answers(run.name) for run in runs]):
        console.print(f"\n[bold]{escape(prompt)}[/]")
        for run, answer in zip(runs, answers, strict=True):
            console.print(f"  [dim]{escape(run.name)}[/]  {escape(answer) if answer is not None else '–'}")


@app.command("results")
def results(tag: Annotated[str, typer.Argument(help="The tag of a sweep, or any other tag.")]) -> None:
    """Show what came of all runs with a tag, the best held-out loss first: the table of a sweep."""
    studio = Studio()
    runs = [studio.runs.open(run.name) for run in studio.runs.all() if tag in run.tags and not run.unreadable]
    if not runs:
        raise StudioError(f"No run has the tag '{tag}'.", "`qlora-studio runs list` shows tags.")
    print_table(results_table(runs))


@app.command("record")
def record(
    name: Name, to: Annotated[str | None, typer.Option("--to", help="File to write; otherwise it is printed.")] = None
) -> None:
    """Write what it takes to do a run again: settings, hashes, versions, losses. `train --from` reads it."""
    text = Studio().runs.record(name).model_dump_json(indent=1)
    if to is None:
        print(text)
        return
    path = Path(to).expanduser()
    if path.exists():
        raise StudioError("This file is there already.", "Name a new one.", where=str(path))
    path.write_text(text + "\n", encoding="utf-8")
    print(f"The record of {name} is in {path}.")
