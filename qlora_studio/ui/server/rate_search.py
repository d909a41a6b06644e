"""The newest search for a learning rate: a child job tries rates, the page only looks at its report."""

from __future__ import annotations

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.jobs import RateReport
from qlora_studio.core.progress import Progress
from qlora_studio.studio import Studio
from qlora_studio.ui.server.background_job import BackgroundJob, problems_of


class RateFinder:
    """One for the whole page."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._job = BackgroundJob(studio)
        self.report: RateReport | None = None
        self.problems: tuple[str, ...] = ()
        """Why there is no report, in sentences."""
        self.version = 0
        """Counts the changes of all this."""

    @property
    def progress(self) -> Progress | None:
        """How far the search is; None when nothing is tried."""
        return self._job.progress

    def start(self, config: TrainConfig, run_steps: int | None) -> None:
        """Starts trying rates, unless that is under way. Raises a StudioError where a run cannot start either."""
        if not self._job.is_open:
            self._job.follow(self._studio.runs.find_rate(config, run_steps))
            self.report, self.problems = None, ()
            self.version += 1

    def stop(self) -> None:
        self._job.stop()

    def settle(self) -> None:
        """Takes the report of a search that has ended."""
        if (job := self._job.take_ended()) is None:
            return
        self.problems = problems_of(job)
        if isinstance(job.progress.report, RateReport):
            self.report = job.progress.report
        self.version += 1
