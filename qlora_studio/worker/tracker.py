"""A tracker that a person has asked for: it hears the curves through its own library, beside the journal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qlora_studio.core import events as ev
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError

FOLDER = "tensorboard"
Hears = Callable[[ev.Event], None]


def open_tracker(config: TrainConfig, folder: Path) -> Hears:
    """What is to be told every event; nothing happens with it where no tracker was asked for.

    Raises a StudioError where its library is not installed.
    """
    if config.saving.tracker == "none":
        return lambda event: None
    try:
        from tensorboard.summary import Writer
    except ImportError:
        raise StudioError(
            "TensorBoard is not installed here.",
            "Install it with `pip install tensorboard`, or set saving.tracker to none.",
            field="saving.tracker",
        ) from None
    return Tracker(Writer(str(folder / FOLDER))).hear


class Tracker:
    """Writes scalars by step. What it cannot write costs a line, never the run."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def hear(self, event: ev.Event) -> None:
        try:
            for name, value, step in scalars(event):
                self.writer.add_scalar(name, value, step)
            if isinstance(event, ev.EvaluationLogged | ev.CheckpointSaved | ev.AdapterSaved):
                self.writer.flush()
        except OSError:
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
