"""The machine and the home as they were at one moment: read once a tick, for all tabs and all slots."""

from __future__ import annotations

import time
from functools import cached_property
from typing import Literal

from qlora_studio.core.dataset import DatasetReport
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import JobRef
from qlora_studio.core.plan import GpuInfo
from qlora_studio.core.progress import JobView
from qlora_studio.core.runs import RunSummary, RunView
from qlora_studio.studio import Studio
from qlora_studio.ui.server.memory import read_memory
from qlora_studio.ui.views.side import Memory
from qlora_studio.ui.views.weights import Choice, weight_choices

FRESH_SECONDS = 0.9
"""A little less than a tick: the first tab that ticks reads anew, and the others take what it read."""

JobKind = Literal["exports", "evaluations"]


class World:
    """What lies outside the page's own memory. Each fact is read when it is first asked for, and then kept."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._read_at = time.monotonic()
        self._views: dict[str, RunView | None] = {}
        self._jobs: dict[tuple[str, JobKind], JobRef | None] = {}
        self._looks: dict[JobRef, JobView] = {}
        self._weights: dict[str, list[Choice]] = {}

    @property
    def is_fresh(self) -> bool:
        return time.monotonic() - self._read_at < FRESH_SECONDS

    @cached_property
    def cards(self) -> list[GpuInfo]:
        return self._studio.machine.gpus()

    @cached_property
    def memory(self) -> Memory:
        return read_memory()

    @cached_property
    def datasets(self) -> dict[str, DatasetReport]:
        """All imported data sets by name."""
        return {report.name: report for report in self._studio.data.sets()}

    @cached_property
    def runs(self) -> dict[str, RunSummary]:
        """A line for every run, by name, the newest first."""
        return {run.name: run for run in self._studio.runs.all()}

    @cached_property
    def with_adapter(self) -> list[str]:
        """Names of the runs that have saved an adapter, the newest first."""
        return [run.name for run in self.runs.values() if run.has_adapter and not run.unreadable]

    @cached_property
    def queued(self) -> list[str]:
        """Names of the runs that wait, the next to start first."""
        return [name for name in self._studio.queue.names() if name in self.runs]

    @cached_property
    def tags(self) -> list[str]:
        """Every tag that several runs share, that of the newest run first."""
        all_tags = [tag for run in self.runs.values() for tag in run.tags]
        return [tag for tag in dict.fromkeys(all_tags) if all_tags.count(tag) > 1]

    @cached_property
    def training(self) -> RunSummary | None:
        """The run that is at work."""
        return next((run for run in self.runs.values() if run.at_work), None)

    @cached_property
    def run(self) -> RunView | None:
        """The run the sidebar shows: the one at work, else the newest that can be read and has begun."""
        newest = sorted(self.runs.values(), key=lambda run: -run.created)
        begun = [run for run in newest if run.state != "queued"]
        names = [run.name for run in (self.training, *begun) if run and not run.unreadable]
        return self.view(names[0]) if names else None

    @cached_property
    def runs_mark(self) -> int:
        """Changes whenever a list of runs would; steps count by tens, or a list could not be read in peace."""
        marks = (
            (run.name, run.title, run.state, run.has_adapter, run.step // 10, run.tags, run.pinned)
            for run in self.runs.values()
        )
        return hash(tuple(marks))

    def view(self, name: str | None) -> RunView | None:
        """One run whole; None for one that is gone or cannot be read."""
        if name is None:
            return None
        if name not in self._views:
            try:
                self._views[name] = self._studio.runs.open(name)
            except StudioError:
                self._views[name] = None
        return self._views[name]

    def weights(self, name: str | None) -> list[Choice]:
        """What can be chosen of a run: its adapter and the checkpoints it has kept."""
        if name is None or (run := self.view(name)) is None:
            return weight_choices(None, ())
        if name not in self._weights:
            self._weights[name] = weight_choices(run, self._studio.runs.checkpoints(name))
        return self._weights[name]

    def newest_job(self, run: str | None, kind: JobKind) -> JobView | None:
        """The newest export or evaluation of a run, and where it stands."""
        job = self.newest_ref(run, kind)
        if job is None:
            return None
        if job not in self._looks:
            self._looks[job] = self._studio.jobs.look(job)
        return self._looks[job]

    def newest_ref(self, run: str | None, kind: JobKind) -> JobRef | None:
        """The newest export or evaluation of a run, for stopping it."""
        if run is None or run not in self.runs:
            return None
        if (run, kind) not in self._jobs:
            self._jobs[run, kind] = next(iter(self._studio.runs.jobs_of(run, kind)), None)
        return self._jobs[run, kind]
