"""How values look in a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from qlora_studio.core import events as ev
from qlora_studio.core.diagnosis import diagnose
from qlora_studio.core.measured import compare_peak
from qlora_studio.core.plan import MemoryPlan
from qlora_studio.core.progress import Progress as State
from qlora_studio.core.progress import advance
from qlora_studio.core.words import clock, gib

PIPED_COLUMNS = 240
"""Where no terminal sets the width a line is read by a program: a state cut to `finish…` is found by none."""


def print_table(table: Table) -> None:
    """A table as wide as the terminal; whole where it is piped into a program."""
    Console(width=None if sys.stdout.isatty() else PIPED_COLUMNS).print(table)


def show_plan(console: Console, plan: MemoryPlan) -> None:
    """The bill, the settings and their reasons."""
    table = Table("Part", "Memory", "From", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for part in plan.estimate.parts:
        table.add_row(part.label, gib(part.bytes), f"[dim]{part.basis}[/]")
    table.add_section()
    table.add_row("[bold]Together", f"[bold]{gib(plan.estimate.total_bytes)}", f"of {gib(plan.budget_bytes)}")
    console.print(table)
    if plan.fits:
        console.print(f"[green]It fits[/], {gib(plan.spare_bytes)} to spare.")
    else:
        console.print(f"[red]It does not fit[/]: {gib(plan.missing_bytes)} too much.")
    for reason in plan.reasons:
        console.print(f"  · {reason}")
    for change in plan.changes:
        console.print(f"  → {change}")
    if plan.longest_context:
        console.print(f"Longest row that would fit: {plan.longest_context} tokens; largest rank: {plan.largest_rank}.")


class Watcher:
    """Shows a job's events as they come: a bar with loss, speed, memory and time left, and a line for each fact."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.state = State()
        self.shown = 0
        self.diagnosed: set[str] = set()

    def follow(self, events: Iterable[ev.Event]) -> State:
        """Shows events until the last; returns the state after it. What an earlier call said is not said again."""
        self.state = State()
        columns = (TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[facts]}"))
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task("starting", total=None, facts="")
            for number, event in enumerate(events, 1):
                self.state = advance(self.state, event)
                if number > self.shown:
                    self._show(event)
                    self.shown = number
                share = self.state.share
                bar.update(
                    task,
                    description=self.state.phase or "starting",
                    total=1.0 if share else None,
                    completed=share,
                    facts=facts(self.state),
                )
        return self.state

    def _show(self, event: ev.Event) -> None:
        show = self.console.print
        match event:
            case ev.Noted():
                show(f"[dim]{event.text}[/]")
            case ev.PlanMade():
                fits = "fits" if event.plan.fits else "does not fit"
                show(f"[dim]Plan: {gib(event.plan.estimate.total_bytes)} of {gib(event.plan.budget_bytes)}, {fits}.[/]")
            case ev.ProbeMeasured():
                show(
                    f"[dim]Largest step: {gib(event.measured_bytes)} measured, {gib(event.predicted_bytes)} planned.[/]"
                )
            case ev.EvaluationLogged():
                who = "with the adapter" if event.adapter else "of the base"
                show(f"Held-out loss {who}: {event.loss:.4f} (step {event.step}, {event.rows} rows)")
                self._diagnose()
            case ev.AdapterSaved():
                loss = f", held-out loss {event.held_out:.4f}" if event.held_out is not None else ""
                show(f"Adapter saved: step {event.step}{loss}.")
            case ev.Finished() | ev.Stopped():
                self._diagnose()
                if sentence := compare_peak(self.state):
                    show(f"[dim]{sentence}[/]")
            case ev.StepRetriedSmaller():
                show(f"[yellow]Out of memory in step {event.step}: the same step again with {event.change}.[/]")
            case ev.UpdateSkipped():
                show(f"[yellow]Step {event.step} was not taken: {event.reason}[/]")
            case ev.StepLogged() if not self.console.is_terminal:
                show(f"step {event.step}/{event.total_steps}  {facts(self.state)}")

    def _diagnose(self) -> None:
        """Says what the curves say, each thing once: what changes in its numbers is not said again."""
        for problem in diagnose(self.state):
            kind = problem.message.split(":")[0]
            if kind not in self.diagnosed or self.state.ended:
                self.console.print(f"[yellow]{escape(problem.message)}[/] {escape(problem.hint)}")
                self.diagnosed.add(kind)


def facts(state: State) -> str:
    """Loss, speed, memory and time left, as far as they are known."""
    step = state.last
    if step is None or state.phase != "training":
        if not state.total or state.unit == "bytes":
            return ""
        left = f"  {clock(state.phase_seconds_left)} left" if state.phase_seconds_left is not None else ""
        return f"{state.done}/{state.total} {state.unit}{left}"
    return (
        f"{step.step}/{step.total_steps}  loss {step.loss:.3f}  {step.tokens_per_second:,.0f} tok/s  "
        f"peak {gib(step.peak_bytes)}  {clock(step.seconds_left)} left"
    )


def when(timestamp: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(timestamp))
