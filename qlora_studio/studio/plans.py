"""Plans: what a run would take, and whether it can start."""

from __future__ import annotations

from collections.abc import Sequence

from qlora_studio.core.bases import FailedBase, ResolvedBase
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.machine import Machine
from qlora_studio.core.plan import MemoryPlan, ModelShape
from qlora_studio.core.readiness import DataFacts, Readiness
from qlora_studio.home import Home
from qlora_studio.planner import fit, readiness, tables
from qlora_studio.planner.machine import read_machine
from qlora_studio.studio.bases import Bases


class Plans:
    """Plans for this machine and for others."""

    def __init__(self, home: Home, bases: Bases) -> None:
        self.home, self.bases = home, bases

    def make(self, config: TrainConfig, lengths: Sequence[int] | None = None) -> MemoryPlan:
        """What a run would take of this machine, as earlier runs have corrected it. Raises as `shape` does."""
        return fit.make_plan(config, self.shape(config), self.machine(config), lengths)

    def for_all_cards(self, config: TrainConfig) -> list[tables.Row]:
        """The plan of one model for every usual card, and for this machine's processor."""
        return tables.plan_all_cards(config, self.shape(config), self.machine(config))

    def for_all_models(self, config: TrainConfig) -> list[tables.Row]:
        """The plan of every known model for this machine."""
        return tables.plan_all_models(config, self.machine(config))

    def readiness(self, config: TrainConfig, data: DataFacts) -> Readiness:
        """Everything a person wants to know before a start; what stands against it is listed and never raised."""
        base = self.bases.facts(config.model.base, config.model.revision)
        return readiness.assess(config, base, data, self.machine(config))

    def machine(self, config: TrainConfig) -> Machine:
        """This machine as a run of this config would see it: the chosen card first."""
        return read_machine(self.home, config.memory.card)

    def shape(self, config: TrainConfig) -> ModelShape:
        """The shape of a config's base. Raises a StudioError where nobody has looked it up yet, or where that failed."""
        facts = self.bases.facts(config.model.base, config.model.revision)
        if isinstance(facts, ResolvedBase):
            return facts.shape
        if isinstance(facts, FailedBase):
            raise StudioError.of([facts.problem])
        raise StudioError(facts.needs, "Look the model up first.", field="model.base")
