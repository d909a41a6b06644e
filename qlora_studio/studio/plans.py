"""Memory plans: what a run would take."""

from __future__ import annotations

from collections.abc import Sequence

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.plan import GpuInfo, MemoryPlan, ModelShape
from qlora_studio.home import Home
from qlora_studio.planner import corrections, dry_runs, fit, gpu, tables
from qlora_studio.studio.bases import Bases


class Plans:
    """Plans for this machine and for others."""

    def __init__(self, home: Home, bases: Bases) -> None:
        self.home, self.bases = home, bases

    def make(self, config: TrainConfig, lengths: Sequence[int] | None = None) -> MemoryPlan:
        """What a run would take, for the first card of this machine or its CPU, as earlier runs have corrected it."""
        card = _card()
        correction = corrections.read_correction(self.home.cache, card)
        return fit.make_plan(config, read_shape(self.home, self.bases, config), card, lengths, correction)

    def for_all_cards(self, config: TrainConfig) -> list[tables.Row]:
        """The plan of one model for every usual card, and for a CPU."""
        return tables.plan_all_cards(config, read_shape(self.home, self.bases, config))

    def for_all_models(self, config: TrainConfig) -> list[tables.Row]:
        """The plan of every known model for this machine."""
        card = _card()
        return tables.plan_all_models(config, card, corrections.read_correction(self.home.cache, card))


def read_shape(home: Home, bases: Bases, config: TrainConfig) -> ModelShape:
    """The shape of a config's base, under the name the person gave."""
    base = bases.find(config.model.base)
    found = dry_runs.read_measured_shape(str(base.folder or base.name), home.models, home.cache)
    return found.model_copy(update={"name": base.name})


def _card() -> GpuInfo | None:
    return next(iter(gpu.read_gpus()), None)
