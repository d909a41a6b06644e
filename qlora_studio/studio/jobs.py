"""Any job: started, looked at, followed, stopped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlora_studio.core.events import Event
from qlora_studio.core.jobs import JobRef, Request
from qlora_studio.core.progress import JobView
from qlora_studio.home import Home
from qlora_studio.planner.machine import named_first, read_cards
from qlora_studio.runs import supervisor
from qlora_studio.runs.folder import JobFolder, create_job
from qlora_studio.runs.store import RunStore


class Jobs:
    """The jobs of a home."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.store = RunStore(home.runs, home.cache)

    def start(
        self, parent: Path, request: Request, files: dict[str, Any] | None = None, *, card: str | None = None
    ) -> JobRef:
        """Makes a job's folder under `parent` and starts its worker, on the card that goes by this name."""
        made = create_job(parent, request.job, request, files)
        supervisor.start(made, card=self.card_of(card))
        return JobRef(made.path)

    def card_of(self, named: str | None) -> str | None:
        """The UUID of the card a worker shall use; None where there is no choice to make."""
        cards = named_first(read_cards(), named)
        return cards[0].uuid or None if len(cards) > 1 else None

    def look(self, job: JobRef) -> JobView:
        """Where a job stands."""
        return self.store.look(JobFolder(job.folder))

    def request(self, job: JobRef) -> Request:
        """What a job was asked to do. Raises a StudioError where another version wrote it down."""
        return JobFolder(job.folder).read_job().request

    def watch(self, job: JobRef) -> Iterator[Event]:
        """All events of a job, past and coming, until it is over."""
        return supervisor.watch(JobFolder(job.folder))

    def stop(self, job: JobRef) -> None:
        """Asks a job to stop where it can; what it has made is kept or removed whole."""
        supervisor.stop(JobFolder(job.folder))
