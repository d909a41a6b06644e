"""What the doctor has found: checks of the machine, and those of torch, which a child process makes."""

from __future__ import annotations

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.doctor import Check
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import DoctorReport, JobRef
from qlora_studio.studio import Studio


class Examination:
    """One for the whole page."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._job: JobRef | None = None
        self.machine: tuple[Check, ...] = ()
        self.engine: tuple[Check, ...] = ()
        """What only torch can tell, once it was asked for."""

    @property
    def under_way(self) -> bool:
        return self._job is not None

    @property
    def phase(self) -> str:
        """What is being tried; empty when nothing is."""
        return (self._studio.jobs.look(self._job).progress.phase or "starting") if self._job is not None else ""

    def check_machine(self, config: TrainConfig | None) -> None:
        """Looks at the machine anew; with a config, whether disk and memory do for its model."""
        try:
            self.machine = tuple(self._studio.machine.check(config))
        except StudioError:  # its base is not looked up, or cannot be
            self.machine = tuple(self._studio.machine.check())

    def check_engine(self) -> None:
        """Starts looking at torch in a process of its own, unless that is under way."""
        if self._job is None:
            self.engine = ()
            self._job = self._studio.machine.check_engine()

    def settle(self) -> None:
        """Takes in what the child has found, once it has ended."""
        if self._job is None:
            return
        job = self._studio.jobs.look(self._job)
        if job.at_work:
            return
        self._job = None
        if isinstance(job.progress.report, DoctorReport):
            self.engine = job.progress.report.checks
        else:
            says = job.progress.message or "The process that looks at torch exited unexpectedly."
            self.engine = (Check(name="torch", state="bad", says=says, remedy=job.progress.hint),)
