"""Base models: which there are, and which a name means."""

from __future__ import annotations

from qlora_studio.bases import Base, find_base
from qlora_studio.core.config import DEMO_BASE
from qlora_studio.home import Home


class Bases:
    """The base models of a home."""

    def __init__(self, home: Home) -> None:
        self.home = home

    def names(self) -> list[str]:
        """Names of the bases on this machine, the demo model first."""
        kept = sorted(
            path.name.replace("--", "/", 1)
            for path in self.home.models.glob("[!.]*")
            if (path / "config.json").exists()
        )
        return [DEMO_BASE, *(name for name in kept if name != DEMO_BASE)]

    def find(self, name: str) -> Base:
        """What a name means. Raises a StudioError for one that is neither a model's folder nor a Hub ID."""
        return find_base(name, self.home.models)
