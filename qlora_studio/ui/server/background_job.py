"""A job that the page has started and waits for: how far it is, and what it ended with. One at a time."""

from __future__ import annotations

from qlora_studio.core.jobs import JobRef
from qlora_studio.core.progress import JobView, Progress
from qlora_studio.studio import Studio


class BackgroundJob:
    """The newest job of its kind, until its end was taken note of."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._job: JobRef | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is one whose end was not taken note of."""
        return self._job is not None

    @property
    def at_work(self) -> bool:
        return self._job is not None and self._studio.jobs.look(self._job).at_work

    @property
    def progress(self) -> Progress | None:
        """How far it is; None when there is none."""
        return self._studio.jobs.look(self._job).progress if self._job is not None else None

    def follow(self, job: JobRef) -> None:
        """Waits for this job from now on."""
        self._job = job

    def stop(self) -> None:
        """Asks it to stop, where there is one."""
        if self._job is not None:
            self._studio.jobs.stop(self._job)

    def take_ended(self) -> JobView | None:
        """The job once it has ended, and only once; None before that and where there is none."""
        if self._job is None:
            return None
        view = self._studio.jobs.look(self._job)
        if view.at_work:
            return None
        self._job = None
        return view


def problems_of(view: JobView) -> tuple[str, ...]:
    """Why an ended job has no report, in sentences."""
    return tuple(part for part in (view.progress.message, view.progress.hint) if part)
