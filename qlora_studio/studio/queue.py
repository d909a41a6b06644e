"""The queue: runs that start one after the other, each looked at before its start, an error of one costing no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.events import Failed
from qlora_studio.core.progress import RESUMABLE
from qlora_studio.core.readiness import DataFacts
from qlora_studio.core.sweep import describe_value
from qlora_studio.home import Home
from qlora_studio.runs import queue, supervisor
from qlora_studio.runs.folder import JobFolder, find_job
from qlora_studio.runs.journal import Journal
from qlora_studio.studio.plans import Plans
from qlora_studio.studio.runs import Runs

MOST_OF_A_SWEEP = 100
"""Runs of one sweep: more is a mistake in typing rather than meant."""


class Queue:
    """The runs of a home that wait for the card."""

    def __init__(self, home: Home, runs: Runs, plans: Plans) -> None:
        self.home, self.runs, self.plans = home, runs, plans

    def names(self) -> list[str]:
        """The runs that wait, the next to start first."""
        return [folder.name for folder in queue.waiting(self.home.runs)]

    def add(self, config: TrainConfig, tags: Sequence[str] = ()) -> str:
        """Makes the folder of a run that waits behind all others; it starts at once where nothing is at work."""
        name = self._put(config, tags)
        self.start_next()
        return name

    def add_again(self, name: str) -> None:
        """Has a run that was paused, stopped or failed wait for going on."""
        view = self.runs.open(name)
        if view.state not in RESUMABLE:
            raise StudioError(f"The run '{name}' is {view.state}.", "Only a run that did not finish can wait to go on.")
        queue.put(JobFolder(view.folder))

    def sweep(self, config: TrainConfig, values: Mapping[str, Sequence[Any]]) -> list[str]:
        """A run for every combination of these settings, all with one tag; they wait, and the first starts.

        Raises a StudioError that names every wrong value before any run is made.
        """
        combinations = [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]
        if not values or len(combinations) > MOST_OF_A_SWEEP:
            raise StudioError(
                f"This sweep has {len(combinations) if values else 0} runs.",
                f"Give 1 to {MOST_OF_A_SWEEP} combinations.",
            )
        stem = config.saving.name.strip() or "sweep"
        configs = [
            config.replace({**changes, "saving.name": f"{stem} {_describe(changes)}"[:120]}) for changes in combinations
        ]
        tag = self._free_tag(stem)
        names = [self._put(one, [tag]) for one in configs]
        self.start_next()
        return names

    def move(self, name: str, position: int) -> None:
        """Puts a waiting run at this position, 1 for the next to start."""
        queue.move(find_job(self.home.runs, name, "run"), position)

    def remove(self, name: str) -> None:
        """Has a run wait no longer. One that never began is deleted; one that was to go on stays as it was."""
        folder = find_job(self.home.runs, name, "run")
        if folder not in queue.waiting(self.home.runs):
            raise StudioError(f"The run '{name}' does not wait.", "`qlora-studio queue list` shows those that do.")
        queue.take_out(folder)
        if not folder.events.exists():
            self.runs.delete(name)

    def start_next(self) -> str | None:
        """Starts the first run that waits and can start; None where none waits or a training is at work.

        A run that cannot start is failed with the reason, and the one behind it is tried.
        """
        with queue.alone(self.home.runs) as alone:
            while alone and self.runs.at_work() is None and (line := queue.waiting(self.home.runs)):
                folder = line[0]
                try:
                    self._check(folder)
                    self.runs.begin(folder)
                    queue.take_out(folder)
                    return folder.name
                except supervisor.TrainingBusy:
                    return None
                except StudioError as error:
                    queue.take_out(folder)
                    _fail(folder, error)
        return None

    def _put(self, config: TrainConfig, tags: Sequence[str]) -> str:
        folder = self.runs.create(config)
        queue.put(folder)
        if tags:
            self.runs.label(folder.name, tags=tuple(tags))
        return folder.name

    def _check(self, folder: JobFolder) -> None:
        """Raises a StudioError where the disk has no room now, the data are gone, or the plan does not fit the card."""
        config = self.runs.open(folder.name).config
        self.runs.data.check(config)
        names = {source.name for source in config.data.sources}
        rows = sum(report.rows for report in self.runs.data.sets() if report.name in names)
        readiness = self.plans.readiness(config, DataFacts(rows))
        if readiness.blocks:
            raise StudioError.of(readiness.blocks)
        if readiness.over_budget is not None:
            raise StudioError.of([readiness.over_budget])

    def _free_tag(self, stem: str) -> str:
        taken, number = {tag for run in self.runs.all() for tag in run.tags}, 1
        while (tag := stem if number == 1 else f"{stem}-{number}") in taken:
            number += 1
        return tag


def _describe(changes: Mapping[str, Any]) -> str:
    """`rank 8 learning_rate 0.0002`: what tells one run of a sweep from another."""
    return " ".join(f"{name.rpartition('.')[2]} {describe_value(value)}" for name, value in changes.items())


def _fail(folder: JobFolder, error: StudioError) -> None:
    journal = Journal(folder.events)
    journal.append(Failed(message=error.message, hint=error.hint))
    journal.close()
