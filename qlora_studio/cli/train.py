"""`qlora-studio train`: data files become an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qlora_studio.cli import options as op
from qlora_studio.cli.bases import look_up
from qlora_studio.cli.jobs import follow
from qlora_studio.cli.show import show_plan
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.core.jobs import RateReport, TokeniseReport
from qlora_studio.core.readiness import DataFacts, Readiness
from qlora_studio.core.record import RunRecord
from qlora_studio.core.sweep import parse_sweep
from qlora_studio.core.words import clock, without_quotes
from qlora_studio.studio import Studio


@op.takes_methods
def train(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE", help="Data files, or names of imported data sets; several are mixed."),
    ] = None,
    record: Annotated[
        str | None, typer.Option("--from", help="The record of a run to do again; flags change single settings of it.")
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option("--adapter", help="Start from the adapter of this run, NAME or NAME@best, with its settings."),
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option("--weight", help="Weight of one set in a mixture, by name: --weight general=0.3. Others have 1."),
    ] = None,
    mix_by: Annotated[
        str | None, typer.Option("--mix-by", help="rows or tokens: what the weights of a mixture count.")
    ] = None,
    model: op.Model = None,
    rank: op.Rank = None,
    memory: op.Memory = None,
    format: op.Format = None,
    column: op.Column = None,
    max_length: op.MaxLength = None,
    epochs: op.Epochs = None,
    seed: op.Seed = None,
    name: op.Name = None,
    set: op.Set = None,
    accept: Annotated[
        list[str] | None, typer.Option("--accept", help="A finding you accept by name, such as secret.")
    ] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Start although the plan does not fit.")] = False,
    queue: Annotated[bool, typer.Option("--queue", help="Have it wait for the card, behind other runs.")] = False,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep",
            help="A setting and its values, as lora.rank=8,16; given several times, every combination is a run in the "
            "queue. `runs results` shows what came of them.",
        ),
    ] = None,
    find_rate: Annotated[
        bool, typer.Option("--find-rate", help="First try a few learning rates on these rows, and take the best.")
    ] = False,
    methods: dict[str, Any] | None = None,
) -> None:
    """Tune a model on your rows. Ctrl-C stops after the current step with the adapter saved."""
    studio, console = Studio(), Console()
    changes = {
        "model.base": model, "data.max_length": max_length, "optim.epochs": epochs, "optim.seed": seed,
        "saving.name": name, "data.mix_by": mix_by,
        "data.format": format, "data.columns": op.parse_columns(column) or None,
        **(methods or {}),
    }  # fmt: skip
    begun = read_record(record).config if record else studio.runs.anew(*split_adapter(adapter)) if adapter else None
    config = op.build_config(studio, rank, memory, changes, set, begun)
    if not files and not config.data.sources:
        raise StudioError("There is nothing to train on.", "Name a data file, or an imported data set.")
    studio.bases.find(config.model.base)
    look_up(studio, console, config.model)
    if files:
        names = [bring_in(studio, console, file, config) for file in files]
        config = config.replace({"data.sources": weigh(names, weight or [])})
    config = config.replace({"data.accepted": [*config.data.accepted, *(accept or [])]})
    studio.data.check(config)
    readiness = assess(studio, console, config)
    show_readiness(console, readiness)
    if readiness.blocks:
        raise StudioError.of(readiness.blocks)
    if queue or sweep:
        wait_in_line(studio, console, config, parse_sweep(sweep or []))
        return
    if not anyway:
        refuse_over_budget(readiness)
    if find_rate:
        config = search_rate(studio, console, config, readiness.steps)
    start(studio, console, config)


def refuse_over_budget(readiness: Readiness) -> None:
    """Raises a StudioError where the plan does not fit."""
    if (refused := readiness.over_budget) is not None:
        raise StudioError(refused.message, f"{refused.hint} Nothing was started; --anyway starts all the same.")


def wait_in_line(studio: Studio, console: Console, config: TrainConfig, sweep: dict[str, list[Any]]) -> None:
    """Puts the run, or every run of a sweep, into the queue; the first starts where nothing is at work."""
    names = studio.queue.sweep(config, sweep) if sweep else [studio.queue.add(config)]
    waiting = studio.queue.names()
    for name in names:
        place = f"waits, number {waiting.index(name) + 1} in the queue" if name in waiting else "has begun"
        console.print(f"[bold]{escape(name)}[/] {place}.")
    if sweep:
        tag = studio.runs.open(names[0]).labels.tags[0]
        console.print(f"What came of them: qlora-studio runs results {escape(tag)}")


def search_rate(studio: Studio, console: Console, config: TrainConfig, steps: int | None) -> TrainConfig:
    """The config with the rate that a search on its own rows finds; unchanged where none was better than the base."""
    job = studio.runs.find_rate(config, steps)
    state = follow(console, lambda: studio.jobs.watch(job), lambda: studio.jobs.stop(job))
    report = state.report
    if not isinstance(report, RateReport):
        raise typer.Exit(130)
    show_rates(console, report)
    return config if report.rate is None else config.replace({"optim.learning_rate": report.rate})


def show_rates(console: Console, report: RateReport) -> None:
    """The loss of every rate that was tried, and which one is taken."""
    table = Table(
        "Learning rate", "Held-out loss" if report.held_out else "Training loss", "", box=None, pad_edge=False
    )
    for point in report.points:
        loss = f"{point.loss:.4f}" if point.loss is not None else "not finite"
        table.add_row(f"{point.rate:g}", loss, "taken" if point.rate == report.rate else "")
    console.print(table)
    console.print(escape(report.sentence))


def split_adapter(text: str) -> tuple[str, str]:
    """`NAME@best` as the name of a run and its checkpoint; without one, its adapter."""
    name, _, checkpoint = text.strip().partition("@")
    return name, checkpoint


def read_record(file: str) -> RunRecord:
    """The record in a file. Raises a StudioError that names the file where it is none."""
    path = Path(without_quotes(file)).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise StudioError(f"The record cannot be read: {reason}.", "Check the path.", where=file) from None
    return RunRecord.parse(text, file)


def bring_in(studio: Studio, console: Console, file: str, config: TrainConfig) -> str:
    """The name of the data set that this is, imported first where it is a file."""
    if file in {report.name for report in studio.data.sets()} and not Path(file).exists():
        return file
    report = studio.data.import_rows(file, format=config.data.format, columns=config.data.columns)
    console.print(escape(f"{report.rows} rows as {report.format} ({report.reason})"))
    return report.name


def weigh(names: list[str], weights: list[str]) -> list[dict[str, Any]]:
    """The sources of a mixture. Raises a StudioError for a weight that is none, or of a set that is not mixed."""
    shares: dict[str, float] = {}
    for text in weights:
        name, sign, value = text.rpartition("=")
        try:
            shares[name] = float(value) if sign else float("nan")
        except ValueError:
            shares[name] = float("nan")
        if not shares[name] > 0:
            raise StudioError(f"'{text}' is not a weight.", "Write it as NAME=NUMBER, such as general=0.3.")
        if name not in names:
            raise StudioError(f"'{name}' is not among the sets.", f"There are: {', '.join(names)}.", field="--weight")
    return [{"name": name, "weight": shares.get(name, 1.0)} for name in names]


def assess(studio: Studio, console: Console, config: TrainConfig) -> Readiness:
    """What the run will do, from the real tokens of its rows."""
    job = studio.data.tokenise(config, previews=0)
    state = follow(console, lambda: studio.jobs.watch(job), lambda: studio.jobs.stop(job))
    if not isinstance(state.report, TokeniseReport):
        raise typer.Exit(130)
    return studio.plans.readiness(config, DataFacts(rows=state.report.rows, tokens=state.report))


def show_readiness(console: Console, readiness: Readiness) -> None:
    """The plan, what is unusual, and the run in one sentence."""
    if readiness.plan is not None:
        show_plan(console, readiness.plan)
    for sentence in readiness.chosen.values():
        console.print(escape(sentence))
    for limit in readiness.limits:
        console.print(f"[yellow]Note[/]: {escape(limit)}")
    for problem in readiness.unusual:
        console.print(f"[yellow]Unusual[/]: {escape(_plain(problem))}")
    console.print(f"[bold]{escape(readiness.sentence)}[/]")


def _plain(problem: Problem) -> str:
    return " ".join(part for part in (problem.message, problem.hint) if part)


def start(studio: Studio, console: Console, config: TrainConfig) -> None:
    """Starts the run and shows it to its end."""
    run = studio.runs.start(config)
    console.print(f"Run [bold]{run}[/]")
    state = follow(console, lambda: studio.runs.watch(run), lambda: studio.runs.stop(run))
    view = studio.runs.open(run)
    loss = f", loss {state.last.loss:.3f}" if state.last else ""
    console.print(f"[green]{state.state.capitalize()}[/] after {state.step} steps and {clock(view.seconds)}{loss}.")
    if view.has_adapter:
        console.print(f"Adapter: {view.folder / 'adapter'}")
        console.print(f"Next: qlora-studio chat {run}   or   qlora-studio export {run} --to FOLDER")
