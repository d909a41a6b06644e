"""Presets: what there is to choose from, and a config with some of it chosen."""

from __future__ import annotations

from collections.abc import Mapping

from qlora_studio import presets
from qlora_studio.core.config import TrainConfig
from qlora_studio.home import Home
from qlora_studio.planner.machine import read_machine
from qlora_studio.presets import Preset


class Presets:
    """The presets that travel with the program and those of a home."""

    def __init__(self, home: Home) -> None:
        self.home = home

    def family(self, family: str) -> list[Preset]:
        """All presets of a family: `format`, `rank` or `memory`."""
        return presets.list_presets(family, self.home)

    def apply(self, config: TrainConfig, names: Mapping[str, str]) -> TrainConfig:
        """The config with one preset of each named family laid over it: `{"rank": "light"}`."""
        chosen = [presets.find_preset(family, name, self.home) for family, name in names.items()]
        return presets.apply_presets(config, chosen)

    def defaults(self) -> dict[str, str]:
        """The preset of each family that suits this machine, for every face alike."""
        return presets.default_presets(read_machine(self.home), self.home)

    def default_config(self) -> TrainConfig:
        """What a run on this machine is set to before a person changes anything."""
        return presets.default_config(read_machine(self.home), self.home)
