"""The newest search for a learning rate: a child job tries rates, the page only looks at its report."""

from __future__ import annotations

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.jobs import JobRef, RateReport
from qlora_studio.core.progress import Progress
from qlora_studio.studio import Studio


class RateFinder:
    """One for the whole page."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._job: JobRef | None = None
        self.report: RateReport | None = None
        self.problems: tuple[str, ...] = ()
        """Why there is no report, in sentences."""
        self.version = 0
        """Counts the changes of all this."""

    @property
    def progress(self) -> Progress | None:
        """How far the search is; None when nothing is tried."""
        return self._studio.jobs.look(self._job).progress if self._job is not None else None

    def start(self, config: TrainConfig, run_steps: int | None) -> None:
        """Starts trying rates, unless that is under way. Raises a StudioError where a run cannot start either."""
        if self._job is None:
            self._job = self._studio.runs.find_rate(config, run_steps)
            self.report, self.problems = None, ()
            self.version += 1

    def stop(self) -> None:
        if self._job is not None:
            self._studio.jobs.stop(self._job)

    def settle(self) -> None:
        """Takes the report of a search that has ended."""
        if self._job is None:
            return
        job = self._studio.jobs.look(self._job)
        if job.at_work:
            return
        self.problems = tuple(part for part in (job.progress.message, job.progress.hint) if part)
        if isinstance(job.progress.report, RateReport):
            self.report = job.progress.report
        self._job = None
        self.version += 1
