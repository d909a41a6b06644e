"""A tracker that a person has asked for: it gets the curves through its own library, beside the journal."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator
from pathlib import Path

from qlora_studio.core import events as ev
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.worker.tracker_writers import WRITERS, Writer

Track = Callable[[ev.Event], None]


def open_tracker(config: TrainConfig, folder: Path) -> Track:
    """What is to be told every event; nothing happens with it where no tracker was asked for.

    Raises a StudioError where its library is not installed.
    """
    if config.saving.tracker == "none":
        return lambda event: None
    title, package, open_writer = WRITERS[config.saving.tracker]
    try:
        writer = open_writer(folder)
    except ImportError:
        raise StudioError(
            f"{title} is not installed here.",
            f"Install it with `pip install {package}`, or choose no tracker.",
            field="saving.tracker",
        ) from None
    atexit.register(writer.close)
    return Tracker(writer).track


class Tracker:
    """Writes scalars by step. What it cannot write costs a line, never the run."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer

    def track(self, event: ev.Event) -> None:
        excused: tuple[type[Exception], ...] = (OSError, *self.writer.errors)
        try:
            for name, value, step in scalars(event):
                self.writer.add_scalar(name, value, step)
            if isinstance(event, ev.EvaluationLogged | ev.CheckpointSaved | ev.AdapterSaved):
                self.writer.flush()
        except excused:
            return


def scalars(event: ev.Event) -> Iterator[tuple[str, float, int]]:
    """Name, value and step of all that an event adds to a curve."""
    match event:
        case ev.StepLogged():
            for name in ("loss", "learning_rate", "grad_norm", "epoch", "tokens_per_second", "peak_bytes"):
                yield f"train/{name}", float(getattr(event, name)), event.step
            for name, value in event.metrics.items():
                yield f"train/{name}", value, event.step
        case ev.EvaluationLogged():
            yield ("held_out/loss" if event.adapter else "held_out/loss_of_base"), event.loss, event.step
