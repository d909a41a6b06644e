"""`qlora-studio data`: look at a file before it is trained on, import it, list what is there."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qlora_studio.cli import options as op
from qlora_studio.cli.jobs import follow
from qlora_studio.cli.show import print_table
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.conversation import Conversation
from qlora_studio.core.dataset import Finding, RowAccount
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import TokeniseReport
from qlora_studio.studio import Studio
from qlora_studio.studio.data import HubChoice

app = typer.Typer(help="Look at data, import it, list what is there.", no_args_is_help=True)
SHOWN_PROBLEMS = 10


@app.command("inspect")
def inspect(
    file: Annotated[str, typer.Argument(help="A data file.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Show the exact tokens this model would be trained on.")
    ] = None,
    format: op.Format = None,
    column: op.Column = None,
    rows: Annotated[int, typer.Option("--rows", min=1, max=1000, help="Rows to show.")] = 3,
    max_length: op.MaxLength = None,
    set: op.Set = None,
) -> None:
    """Show what a whole file holds: its format and why, some rows as conversations, and every row that cannot be read.

    With --model also the rendered text with its trained tokens, the lengths, and what the limit costs. Writes nothing
    into your data sets. Exit code 2 where any row cannot be read.
    """
    studio, console = Studio(), Console()
    columns = op.parse_columns(column)
    preview = studio.data.inspect(file, format=format or "auto", columns=columns, rows=rows)
    if preview.guess.format:
        console.print(
            f"Format: [bold]{preview.guess.format}[/], {preview.guess.confidence:.0%} sure: {preview.guess.reason}"
        )
    for conversation in preview.conversations:
        show_conversation(console, conversation)
    if preview.guess.format:
        show_account(preview.account)
    if preview.problems:
        raise StudioError.of(preview.problems[:SHOWN_PROBLEMS])
    if model is not None:
        changes: dict[str, Any] = {
            "model.base": model,
            "data.max_length": max_length,
            "data.format": format,
            "data.columns": columns or None,
        }
        config = op.build_config(studio, None, None, changes, set)
        show_tokens(console, studio, file, config, rows)


def show_account(account: RowAccount) -> None:
    """The rows' account, and what was no row."""
    print(f"{account}.")
    for note in account.notes:
        print(note)
    for note in account.passed_over:
        print(f"Passed over: {note}")


def show_conversation(console: Console, conversation: Conversation) -> None:
    console.rule(f"[dim]{escape(str(conversation.source))}[/]", align="left")
    for turn in conversation.turns:
        console.print(Text(f"{turn.role}: ", style="bold").append(turn.content, style="not bold"))
        for call in turn.tool_calls:
            console.print(Text(f"  calls {call.name}({call.arguments})"))
    for turn in conversation.rejected:
        console.print(Text("rejected: ", style="bold").append(turn.content, style="not bold"))
    if conversation.text is not None:
        console.print(Text(conversation.text))
    for segment in conversation.segments:
        console.print(Text(("trained: " if segment.train else "context: ") + segment.text))
    if conversation.extra:
        console.print(Text(f"kept beside it, not trained: {', '.join(conversation.extra)}", style="dim"))


def show_tokens(console: Console, studio: Studio, file: str, config: TrainConfig, rows: int) -> None:
    """The token view: trained text is underlined and in brackets, so that it shows without colour as well."""
    job = studio.data.tokenise_file(file, config, rows)
    state = follow(console, lambda: studio.jobs.watch(job), lambda: studio.jobs.stop(job))
    if isinstance(state.report, TokeniseReport):
        show_report(console, state.report)


def show_report(console: Console, report: TokeniseReport) -> None:
    """Examples with their trained tokens, then counts, lengths and findings."""
    for preview in report.previews:
        title = f"[dim]{escape(preview.source)}, {preview.tokens} tokens, {preview.trained} trained[/]"
        console.rule(title, align="left")
        text = Text()
        for piece in preview.pieces:
            style = "underline green" if piece.trained else "dim"
            text.append(f"⟦{piece.text}⟧" if piece.trained else piece.text, style=style)
        console.print(text)
    share = report.trained_tokens / max(1, report.tokens)
    console.rule(align="left")
    console.print(
        f"{report.rows} rows to train and {report.held_out_rows} held out; "
        f"{report.tokens} tokens, {share:.0%} of them trained; "
        f"median {report.median}, longest {report.longest}."
    )
    console.print(
        f"Max sequence length {report.limit}: {report.too_long} rows are longer, {report.dropped} dropped, "
        f"{report.cut} truncated; {report.refused} rows cannot be trained. "
        f"Batches of eight as they come would be {report.padding_share:.0%} padding."
    )
    most = max((column.rows for column in report.histogram), default=1)
    for column in report.histogram:
        mark = " ← limit" if column.first <= report.limit <= column.last else ""
        bar = "█" * round(40 * column.rows / most)
        console.print(f"{column.first:>7} {bar} {column.rows}{mark}", highlight=False)
    for finding in report.findings:
        show_finding(console, finding)


def show_finding(console: Console, finding: Finding) -> None:
    title = f"[bold]{finding.severity}[/] {finding.name} · {finding.count}"
    console.print(f"{title}: {escape(finding.message)} {escape(finding.hint)}")
    for example in finding.examples:
        console.print(f"    {escape(example)}")
    if finding.remedy:
        console.print(f"    Clean it: qlora-studio data clean NAME {finding.remedy}")
    if finding.setting:
        action = "Leave these rows out" if finding.setting.startswith("data.accepted") else "Set"
        console.print(f"    {action}: --set {finding.setting}")


@app.command("lint")
def lint(name: Annotated[str, typer.Argument(help="Name of an imported data set.")]) -> None:
    """Show what is wrong with the rows of a set, with examples and cleaning steps. Exit code 1 where a run would not start."""
    findings, console = Studio().data.findings(name), Console()
    for finding in findings:
        show_finding(console, finding)
    if not findings:
        print("Nothing was found.")
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(1)


@app.command("clean")
def clean(
    name: Annotated[str, typer.Argument(help="Name of an imported data set.")],
    steps: Annotated[list[str], typer.Argument(help="Cleaning steps by name, as `data lint` names them.")],
) -> None:
    """Clean a data set by these steps, whole or not at all; what was done is kept in its report."""
    report = Studio().data.clean(name, steps)
    print(f"{report.name}: {report.rows} rows after {', '.join(steps)}.")


@app.command("remove")
def remove(
    name: Annotated[str, typer.Argument(help="Name of an imported data set.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask, even where runs refer to it.")] = False,
) -> None:
    """Delete an imported data set. Runs that were trained on it keep their adapters."""
    studio = Studio()
    if referring := studio.references.to_set(name):
        print("\n".join(referring))
        if not yes and not typer.confirm(f"Delete {name} all the same?"):
            print(f"{name} stays.")
            return
    studio.data.remove(name)
    print(f"{name} was removed.")


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="A file, a folder, or the id of a hub data set such as owner/name.")],
    name: Annotated[str, typer.Option("--name", help="Name of the set; empty takes the file's.")] = "",
    format: op.Format = None,
    column: op.Column = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out and count rows that cannot be read.")] = False,
    eval_file: Annotated[str, typer.Option("--eval-file", help="Rows to measure with, instead of a share.")] = "",
    drop_overlap: Annotated[
        bool, typer.Option("--drop-overlap", help="Leave out rows whose prompt stands in the evaluation file.")
    ] = False,
    subset: Annotated[str | None, typer.Option("--subset", help="Part of a hub data set.")] = None,
    split: Annotated[str, typer.Option("--split", help="Split of a hub data set.")] = "train",
    revision: Annotated[str | None, typer.Option("--revision", help="Commit of a hub set; empty pins one.")] = None,
) -> None:
    """Import rows into your data sets. Every row comes in whole, or the import is refused with file and line."""
    choices: dict[str, Any] = {"name": name, "format": format or "auto", "columns": op.parse_columns(column)}
    if eval_file or drop_overlap:
        choices |= {"eval_file": eval_file, "drop_overlap": drop_overlap}
    report = Studio().data.import_rows(source, hub=HubChoice(subset, split, revision), skip_bad=skip_bad, **choices)
    print(f"{report.name}: {report.rows} rows as {report.format}" + (", already there" if report.unchanged else ""))
    show_account(report.account)
    for problem in report.problems:
        print(f"  {problem}")
    for field, count in report.extra_fields.items():
        print(f"Column '{field}' ({count} rows) is kept beside the rows and not trained.")


@app.command("list")
def list_sets() -> None:
    """All imported data sets."""
    reports = Studio().data.sets()
    if not reports:
        print("There are no data sets yet. `qlora-studio data import FILE` makes one.")
        return
    table = Table("Data set", "Rows", "Format", "From", box=None, pad_edge=False)
    for report in reports:
        table.add_row(report.name, str(report.rows), report.format, report.source_file)
    print_table(table)
