"""The token view of the chosen data: a child job counts and renders, the page only looks at its report."""

from __future__ import annotations

import json

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.jobs import TokeniseReport
from qlora_studio.core.progress import Progress
from qlora_studio.studio import Studio
from qlora_studio.ui.server.background_job import BackgroundJob, problems_of

PREVIEWS = 12
"""Examples that are rendered for looking at."""


class TokenCount:
    """The newest token job, and what it found once it is done."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._job = BackgroundJob(studio)
        self._job_mark = ""
        self._mark = ""
        """For which settings `report` holds."""
        self.report: TokeniseReport | None = None
        self.problems: tuple[str, ...] = ()
        """Why there is no report, in sentences."""
        self.version = 0
        """Counts the changes of all this."""

    @property
    def progress(self) -> Progress | None:
        """How far the counting is; None when nothing is counted."""
        return self._job.progress

    @property
    def sets(self) -> list[str]:
        """Names of the sets that `report` is about."""
        return [source["name"] for source in json.loads(self._mark)[1]] if self._mark else []

    def start(self, config: TrainConfig) -> None:
        """Starts counting, unless just that is being counted. Raises a StudioError where it cannot."""
        if self._job.at_work:
            if self._job_mark == mark_of(config):
                return
            self._job.stop()
        self.problems = ()
        self._job.follow(self._studio.data.tokenise(config, PREVIEWS))
        self._job_mark = mark_of(config)
        self.version += 1

    def keep(self, config: TrainConfig, report: TokeniseReport) -> None:
        """Takes a report as the one that holds for these settings."""
        self.report, self._mark = report, mark_of(config)
        self.version += 1

    def forget(self) -> None:
        """Drops what is known: the rows have changed."""
        self.report, self._mark = None, ""
        self.version += 1

    def settle(self) -> None:
        """Takes the report of a job that has ended."""
        if (job := self._job.take_ended()) is None:
            return
        self.problems = problems_of(job)
        if isinstance(job.progress.report, TokeniseReport):
            self.report, self._mark = job.progress.report, self._job_mark
        elif not self.problems:
            self.problems = (f"The counting was {job.state}.", "Count again.")
        self.version += 1

    def known_for(self, config: TrainConfig) -> TokeniseReport | None:
        """The report, where it was made for these very settings."""
        return self.report if self.report is not None and self._mark == mark_of(config) else None


def mark_of(config: TrainConfig) -> str:
    """What the tokens depend on: the model and its template, the sets, then everything else of the data section."""
    data = config.data.model_dump(mode="json")
    sources = data.pop("sources")
    data.pop("accepted")
    return json.dumps([[config.model.base, config.model.template], sources, data, config.optim.seed], sort_keys=True)
