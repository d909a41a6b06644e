"""The token view of the chosen data: a child job counts and renders, the page only looks at its result."""

from __future__ import annotations

import json
from dataclasses import dataclass

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.jobs import JobRef, TokeniseReport
from qlora_studio.studio import Studio

ROWS = 12
"""Rows that are rendered for looking at."""


@dataclass(frozen=True, slots=True)
class Counted:
    """A token job: for which settings it was started, and where it lies."""

    mark: str
    job: JobRef


@dataclass(slots=True)
class Tokens:
    """The newest token job, and what it found once it is done."""

    studio: Studio
    counted: Counted | None = None
    result: TokeniseReport | None = None
    mark: str = ""
    """For which settings `result` holds."""
    problems: tuple[str, ...] = ()
    """Why there is no result, in sentences."""

    def start(self, config: TrainConfig) -> None:
        """Starts counting, unless just that is being counted. Raises a StudioError where it cannot."""
        if self.counted is not None and self.studio.jobs.look(self.counted.job).at_work:
            if self.counted.mark == mark_of(config):
                return
            self.studio.jobs.stop(self.counted.job)
        self.problems = ()
        self.counted = Counted(mark_of(config), self.studio.data.tokenise(config, ROWS))

    def forget(self) -> None:
        """Drops what is known: the rows have changed."""
        self.result, self.mark = None, ""

    def settle(self) -> bool:
        """Takes the result of a job that has ended. Returns whether something new is known."""
        if self.counted is None:
            return False
        job = self.studio.jobs.look(self.counted.job)
        if job.at_work:
            return False
        self.problems = tuple(part for part in (job.progress.message, job.progress.hint) if part)
        if isinstance(job.progress.report, TokeniseReport):
            self.result, self.mark = job.progress.report, self.counted.mark
        elif not self.problems:
            self.problems = (f"The counting was {job.state}.", "Count again.")
        self.counted = None
        return True

    @property
    def counting(self) -> bool:
        return self.counted is not None

    def known_for(self, config: TrainConfig) -> TokeniseReport | None:
        """The result, where it was made for these very settings."""
        return self.result if self.result is not None and self.mark == mark_of(config) else None

    def lengths_for(self, config: TrainConfig) -> list[int] | None:
        """What the plan needs of the lengths: the longest row, where these sets were counted with this model."""
        if self.result is None or json.loads(self.mark)[:2] != json.loads(mark_of(config))[:2]:
            return None
        return [self.result.longest] if self.result.longest else None


def mark_of(config: TrainConfig) -> str:
    """What the tokens depend on: the model and its template, the sets, then everything else of the data section."""
    data = config.data.model_dump(mode="json")
    sources = data.pop("sources")
    data.pop("accepted")
    return json.dumps([[config.model.base, config.model.template], sources, data, config.optim.seed], sort_keys=True)
