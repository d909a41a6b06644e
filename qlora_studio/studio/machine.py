"""This machine: its cards, and whether it can train."""

from __future__ import annotations

from qlora_studio.core import machine as core
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.doctor import Check
from qlora_studio.core.jobs import DoctorRequest, JobRef
from qlora_studio.core.plan import GpuInfo
from qlora_studio.home import Home
from qlora_studio.planner import doctor
from qlora_studio.planner.machine import read_cards, read_machine
from qlora_studio.studio.jobs import Jobs
from qlora_studio.studio.plans import Plans


class Machine:
    """What the studio runs on."""

    def __init__(self, home: Home, jobs: Jobs, plans: Plans) -> None:
        self.home, self.jobs, self.plans = home, jobs, plans

    def read(self) -> core.Machine:
        """This computer at this moment, as plans see it."""
        return read_machine(self.home)

    def gpus(self) -> list[GpuInfo]:
        """The cards a run may use, at this moment; none where no driver answers."""
        return read_cards()

    def check(self, config: TrainConfig | None = None) -> list[Check]:
        """What can be told at once: card, driver, memory, disk; with a config, whether the disk does for its base."""
        return doctor.check_machine(self.home.root, self.read(), self.plans.shape(config) if config else None)

    def check_engine(self) -> JobRef:
        """Starts looking at what only torch can tell; the checks are the job's report."""
        return self.jobs.start(self.home.cache / "doctor", DoctorRequest())
