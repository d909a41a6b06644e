"""This machine: its cards, and whether it can train."""

from __future__ import annotations

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.doctor import Check
from qlora_studio.core.jobs import DoctorRequest, JobRef
from qlora_studio.core.plan import GpuInfo
from qlora_studio.home import Home
from qlora_studio.planner import doctor, gpu
from qlora_studio.studio.bases import Bases
from qlora_studio.studio.jobs import Jobs
from qlora_studio.studio.plans import read_shape


class Machine:
    """What the studio runs on."""

    def __init__(self, home: Home, jobs: Jobs, bases: Bases) -> None:
        self.home, self.jobs, self.bases = home, jobs, bases

    def gpus(self) -> list[GpuInfo]:
        """Every card at this moment; none where no driver answers."""
        return gpu.read_gpus()

    def check(self, config: TrainConfig | None = None) -> list[Check]:
        """What can be told at once: card, driver, memory, disk; with a config, whether the disk does for its base."""
        return doctor.check_machine(self.home.root, read_shape(self.home, self.bases, config) if config else None)

    def check_engine(self) -> JobRef:
        """Starts looking at what only torch can tell; the checks are the job's report."""
        return self.jobs.start(self.home.cache / "doctor", DoctorRequest())
