"""What the doctor has found: checks of the machine, and those of torch, which a child process makes."""

from __future__ import annotations

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.doctor import Check
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import DoctorReport
from qlora_studio.studio import Studio
from qlora_studio.ui.server.background_job import BackgroundJob


class Examination:
    """One for the whole page."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._job = BackgroundJob(studio)
        self.machine: tuple[Check, ...] = ()
        self.engine: tuple[Check, ...] = ()
        """What only torch can tell, once it was asked for."""

    @property
    def under_way(self) -> bool:
        return self._job.is_open

    @property
    def phase(self) -> str:
        """What is being tried; empty when nothing is."""
        progress = self._job.progress
        return (progress.phase or "starting") if progress is not None else ""

    def check_machine(self, config: TrainConfig | None) -> None:
        """Looks at the machine anew; with a config, whether disk and memory do for its model."""
        try:
            self.machine = tuple(self._studio.machine.check(config))
        except StudioError:  # its base is not looked up, or cannot be
            self.machine = tuple(self._studio.machine.check())

    def check_engine(self) -> None:
        """Starts looking at torch in a process of its own, unless that is under way."""
        if not self._job.is_open:
            self.engine = ()
            self._job.follow(self._studio.machine.check_engine())

    def settle(self) -> None:
        """Takes in what the child has found, once it has ended."""
        if (job := self._job.take_ended()) is None:
            return
        if isinstance(job.progress.report, DoctorReport):
            self.engine = job.progress.report.checks
        else:
            finding = job.progress.message or "The process that looks at torch exited unexpectedly."
            self.engine = (Check(name="torch", state="bad", finding=finding, remedy=job.progress.hint),)
