"""Looking a base model up: once for each that the draft names, as a job, so that plans stay arithmetic."""

from __future__ import annotations

from qlora_studio.core.bases import BaseFacts, BaseRef, FailedBase
from qlora_studio.core.config import ModelConfig
from qlora_studio.core.progress import Progress
from qlora_studio.studio import Studio
from qlora_studio.ui.server.background_job import BackgroundJob


class BaseLookup:
    """The newest look-up, and what is known afterwards."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._job = BackgroundJob(studio)
        self._started: set[BaseRef] = set()
        self.version = 0
        """Counts what was found out."""

    @property
    def progress(self) -> Progress | None:
        """How far the look-up is; None when nothing is looked up."""
        return self._job.progress

    def facts(self, model: ModelConfig) -> BaseFacts:
        """What is known of a base now; one that nobody has looked up yet is looked up from here on."""
        facts = self._studio.bases.facts(model.base, model.revision)
        if facts.state == "unresolved" and BaseRef(model.base, model.revision) not in self._started:
            self.start(model)
        return facts

    def start(self, model: ModelConfig, *, again: bool = False) -> None:
        """Looks a base up, in the place of one that is being looked up; `again` forgets a failure that is kept."""
        self._job.stop()
        self._started.add(BaseRef(model.base, model.revision))
        self._job.follow(self._studio.bases.resolve(model.base, model.revision, again=again))

    def settle(self) -> None:
        """Takes note of a look-up that has ended."""
        if self._job.take_ended() is not None:
            self.version += 1


def may_end_otherwise(facts: BaseFacts | None) -> bool:
    """Whether asking again makes sense: the hub may have been out of reach."""
    return isinstance(facts, FailedBase) and facts.stage != "files"
