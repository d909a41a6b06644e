"""The queue goes on when a training's guard was killed: it is the guard that starts the next run, and the page that sees."""

from __future__ import annotations

import logging
import threading

from qlora_studio.core.errors import StudioError
from qlora_studio.studio import Studio
from qlora_studio.ui.server.world import World


class QueueWatch:
    """One for the whole page; asked at every tick."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._seen: str | None = None
        """The run that was at work at the last look."""
        self._start: threading.Thread | None = None

    def settle(self, world: World) -> None:
        """Starts the next run where the one that was at work is gone without a last word, beside the tick.

        A run that ended, whatever its end, was followed by its guard; one that was paused keeps the card free.
        """
        if world.training is not None:
            self._seen = world.training.name
            return
        run = world.runs.get(self._seen or "")
        if run is None or run.state != "interrupted" or not world.queued:
            return
        self._seen = None
        self._start = threading.Thread(target=self._start_next, daemon=True)
        self._start.start()

    def wait(self) -> None:
        """Returns when a start that was begun is through."""
        if self._start is not None:
            self._start.join()

    def _start_next(self) -> None:
        try:
            self._studio.queue.start_next()
        except (StudioError, OSError):  # the runs still wait, and the page shows them
            logging.getLogger(__name__).exception("The queue could not go on.")
