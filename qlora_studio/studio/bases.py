"""Base models: which there are, which a name means, and what is known of them."""

from __future__ import annotations

from qlora_studio.bases import Base, find_base
from qlora_studio.core.bases import BaseFacts, BaseRef
from qlora_studio.core.config import DEMO_BASE
from qlora_studio.core.jobs import JobRef, ResolveRequest
from qlora_studio.home import Home
from qlora_studio.planner.bases import find_resolved
from qlora_studio.studio.jobs import Jobs


class Bases:
    """The base models of a home."""

    def __init__(self, home: Home, jobs: Jobs) -> None:
        self.home, self.jobs = home, jobs

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

    def facts(self, name: str, revision: str | None = None) -> BaseFacts:
        """What is known of a base: resolved, not resolved yet, or why it failed. Files only; never waits, never raises."""
        return find_resolved(BaseRef(name, revision), self.home)

    def resolve(self, name: str, revision: str | None = None, *, again: bool = False) -> JobRef:
        """Starts looking a base up; `facts` knows it afterwards. `again` forgets what is kept, a failure too."""
        request = ResolveRequest(base=name, revision=revision, again=again)
        return self.jobs.start(self.home.cache / "resolved", request)
