"""`qlora-studio demo`: the whole way on a small real model, from rows to merged weights, with the effect to be seen."""

from __future__ import annotations

import re
import time

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qlora_studio.cli.evaluate import show_losses
from qlora_studio.cli.export import show_export
from qlora_studio.cli.jobs import follow
from qlora_studio.core.chat import Sampling
from qlora_studio.core.errors import StudioError
from qlora_studio.core.exports import ExportOptions, find_export_kind
from qlora_studio.core.progress import Progress
from qlora_studio.core.readiness import DataFacts
from qlora_studio.core.words import clock
from qlora_studio.studio import Studio
from qlora_studio.studio.data import Demo


def demo() -> None:
    """Tune a small model on 120 rows, compare it with its base, merge it, and check the merged model."""
    begun = time.monotonic()
    studio, console = Studio(), Console()
    demo = studio.data.demo()
    console.rule("1  Rows")
    report = studio.data.import_rows(str(demo.rows), name="demo")
    console.print(f"{report.rows} rows as {report.format}, in {studio.home.datasets / 'demo'}")
    console.rule("2  Training, 4-bit QLoRA")
    config = studio.presets.default_config().replace(
        {**demo.settings, "data.sources": [{"name": "demo"}], "saving.name": "demo"}
    )
    readiness = studio.plans.readiness(config, DataFacts(rows=report.rows))
    console.print(f"[bold]{escape(readiness.sentence)}[/]")
    if readiness.blocks:
        raise StudioError.of(readiness.blocks)
    run = studio.runs.start(config)
    state = follow(console, lambda: studio.runs.watch(run), lambda: studio.runs.stop(run))
    console.print(f"{state.step} steps, adapter in {studio.runs.open(run).folder / 'adapter'}")
    if state.state in ("stopped", "paused"):
        console.print("Stopped; the adapter is saved.")
        return
    console.rule("3  Before and after, same prompts, same seed")
    job = studio.runs.evaluate(run, demo.prompts, Sampling(max_new_tokens=64))
    measured = follow(console, lambda: studio.jobs.watch(job), lambda: studio.jobs.stop(job))
    show_answers(console, measured, demo)
    console.rule("4  Merged weights")
    job = studio.exports.start(
        run, ExportOptions(find_export_kind("merged")), str(studio.home.exports / run), demo.prompts
    )
    exported = follow(console, lambda: studio.jobs.watch(job), lambda: studio.jobs.stop(job))
    show_export(console, exported)
    kept = count_kept(exported, demo, "merged")
    console.print(f"Answers of the merged model in the taught form: {kept} of {len(demo.prompts)}.")
    console.rule()
    console.print(f"Done in {clock(time.monotonic() - begun)}. Open the studio with this run: [bold]qlora-studio ui[/]")
    console.print(f"Or chat with it here: [bold]qlora-studio chat {run} --side both[/]")


def show_answers(console: Console, state: Progress, demo: Demo) -> None:
    """Base beside tuned for every prompt, how many kept the taught form, and the held-out loss of both."""
    table = Table("Asked", "Base", "Tuned", show_lines=True)
    for prompt in demo.prompts:
        answers = {sample.side: sample.answer for sample in state.samples if sample.prompt == prompt}
        table.add_row(escape(prompt), escape(answers.get("base", "")), escape(answers.get("tuned", "")))
    console.print(table)
    base, tuned, count = count_kept(state, demo, "base"), count_kept(state, demo, "tuned"), len(demo.prompts)
    console.print(f"Answers in the taught form: base {base} of {count}, tuned {tuned} of {count}.")
    show_losses(console, state)


def count_kept(state: Progress, demo: Demo, side: str) -> int:
    """How many answers of one side are in the form that the demo teaches."""
    return sum(
        bool(re.fullmatch(demo.pattern, sample.answer.strip())) for sample in state.samples if sample.side == side
    )
