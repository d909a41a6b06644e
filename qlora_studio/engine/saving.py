"""What a run saves, and when: checkpoints by time, the best one, the last, and the adapter at its end."""

from __future__ import annotations

import time
from collections.abc import Callable

from qlora_studio.core import events as ev
from qlora_studio.core.errors import StudioError
from qlora_studio.core.held_out import HeldOut
from qlora_studio.engine.checkpoints import Keeping, Position, RunCheckpoints, TunedModel
from qlora_studio.engine.ladder import MemoryLadder
from qlora_studio.engine.manifest import find_damage
from qlora_studio.engine.numerics import read_numerics
from qlora_studio.engine.setup import Setup
from qlora_studio.engine.updates import Updates

MOST_SHARE = 0.02
"""Of the run's time may go into checkpoints by time."""
RETRY_SECONDS = 60.0
"""After a save that failed: soon enough to lose little, seldom enough not to fill the log."""


class Pacing:
    """When a checkpoint is due by time; `clock` gives seconds that never go back."""

    def __init__(self, every_minutes: float, clock: Callable[[], float]) -> None:
        self.every_seconds = 60 * every_minutes
        self.clock = clock
        self._due_at = clock() + self.every_seconds

    @property
    def is_due(self) -> bool:
        return self.clock() > self._due_at

    def saved(self, begun: float) -> None:
        """A save that began then is done: the next one is due when both together cost no more than their share."""
        now = self.clock()
        self._due_at = now + max(self.every_seconds, (now - begun) / MOST_SHARE)

    def failed(self) -> None:
        """A save did not succeed: it is tried again before long."""
        self._due_at = self.clock() + min(RETRY_SECONDS, self.every_seconds)


class Saving:
    """The saving side of one run."""

    def __init__(self, setup: Setup, updates: Updates, ladder: MemoryLadder, emit: Callable[[ev.Event], None]) -> None:
        self.setup, self.updates, self.ladder, self.emit = setup, updates, ladder, emit
        tuned = TunedModel(setup.model, setup.base, setup.revision)
        keeping = Keeping(setup.config.saving.keep, setup.pinned)
        self.checkpoints = RunCheckpoints(setup.folder, tuned, setup.accelerator, keeping)
        self.pacing = Pacing(setup.config.saving.every_minutes, time.monotonic)

    def save(self, step: int, held_out: HeldOut) -> None:
        """Writes the checkpoint of the step that the weights are at. Raises a StudioError where it cannot."""
        begun = time.monotonic()
        numerics = read_numerics(self.setup.model, self.setup.accelerator)
        position = Position(step, held_out, self.updates.state(), self.ladder.limits, numerics)
        path = self.checkpoints.save(self.updates.optimizer, position)
        self.pacing.saved(begun)
        self.emit(ev.CheckpointSaved(step=step, path=path))

    def save_if_possible(self, step: int, held_out: HeldOut) -> None:
        """A checkpoint whose failing costs the run nothing but a word: it is tried again before long."""
        if not self.setup.all_logged():
            self.pacing.failed()
            return
        try:
            self.save(step, held_out)
        except StudioError as error:
            self.pacing.failed()
            self.emit(
                ev.Noted(text=f"Step {step}: {error.message} {self.checkpoints.describe_newest()} The run goes on.")
            )

    def save_adapter(self, step: int, held_out: HeldOut, *, going_on: bool = False) -> None:
        """Writes `adapter/`: the weights of now, or those of the best step where config and curve say so.

        `going_on`: steps are left. While the held-out loss still falls, the newest weights are the better guess then.
        """
        best = self.checkpoints.best_kept(held_out)
        wanted = self.setup.config.saving.adapter == "best" and best is not None and best[0] != step
        if best is None or not wanted or (going_on and best == held_out.newest):
            self._save_newest(step, held_out)
        elif damage := find_damage(self.checkpoints.path(best[0])):
            self.emit(ev.Noted(text=f"{damage} So the adapter is that of step {step}, not of the best step."))
            self._save_newest(step, held_out)
        else:
            self.checkpoints.copy_adapter(best[0], self.setup.also)
            self.emit(ev.AdapterSaved(step=best[0], held_out=best[1]))

    def _save_newest(self, step: int, held_out: HeldOut) -> None:
        self.checkpoints.save_adapter(self.setup.also)
        self.emit(ev.AdapterSaved(step=step, held_out=dict(held_out.evaluations).get(step)))

    def keep_last_whole_step(self, step: int, held_out: HeldOut, *, updating: bool) -> None:
        """After an error: a checkpoint of the last whole step where there is none, else a word about the last one.

        `updating`: the weights may be those of no whole step.
        """
        if self.checkpoints.newest_step == step:
            return
        if updating:
            text = f"The update of step {step + 1} did not finish. {self.checkpoints.describe_newest()}"
            self.emit(ev.Noted(text=text))
            return
        try:
            self.save(step, held_out)
        except Exception as error:  # the error that brought us here is the one to raise
            text = f"Step {step} could not be saved ({type(error).__name__}). {self.checkpoints.describe_newest()}"
            self.emit(ev.Noted(text=text))
