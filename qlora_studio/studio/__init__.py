"""The verbs that command line and page share, by concern. Delegates to the rooms below and decides nothing itself."""

from __future__ import annotations

from pathlib import Path

from qlora_studio.home import Home, bundled
from qlora_studio.studio.bases import Bases
from qlora_studio.studio.chats import Chats
from qlora_studio.studio.combinations import Combinations
from qlora_studio.studio.data import Data
from qlora_studio.studio.exports import Exports
from qlora_studio.studio.jobs import Jobs
from qlora_studio.studio.machine import Machine
from qlora_studio.studio.plans import Plans
from qlora_studio.studio.presets import Presets
from qlora_studio.studio.queue import Queue
from qlora_studio.studio.references import References
from qlora_studio.studio.runs import Runs


class Studio:
    """One home and everything that can be done in it. Cheap to make; holds no model and no card."""

    def __init__(self, home: Home | None = None) -> None:
        self.home = home or Home.find()
        self.jobs = Jobs(self.home)
        self.bases = Bases(self.home, self.jobs)
        self.presets = Presets(self.home)
        self.plans = Plans(self.home, self.bases)
        self.machine = Machine(self.home, self.jobs, self.plans)
        self.data = Data(self.home, self.jobs, self.bases)
        self.runs = Runs(self.home, self.jobs, self.bases, self.data)
        self.references = References(self.jobs, self.runs)
        self.combinations = Combinations(self.home, self.bases, self.runs)
        self.queue = Queue(self.home, self.runs, self.plans)
        self.exports = Exports(self.home, self.jobs, self.bases, self.runs)
        self.chats = Chats(self.home, self.jobs, self.runs)

    @property
    def assets(self) -> Path:
        """The folder of styles, scripts and pictures."""
        return bundled("assets")
