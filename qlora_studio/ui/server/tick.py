"""What moves by itself: once a second every slot is asked what it shows now, and only what changed is sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from qlora_studio.core.plan import GpuInfo
from qlora_studio.core.runs import RunView
from qlora_studio.ui.server.machine import Machine
from qlora_studio.ui.server.session import Desk

SECONDS = 1.0

Seen = dict[str, int]


@dataclass(frozen=True, slots=True)
class Now:
    """The world at one tick, read once for all slots."""

    desk: Desk
    cards: list[GpuInfo]
    machine: Machine
    run: RunView | None

    @classmethod
    def look(cls, desk: Desk) -> Now:
        return cls(desk, desk.studio.machine.gpus(), desk.machine(), desk.current_run())

    @property
    def training(self) -> bool:
        return self.run is not None and self.run.at_work

    @property
    def runs_mark(self) -> object:
        """Changes whenever a list of runs would."""
        return tuple(run.name for run in self.desk.studio.runs.all()), self.run and (
            self.run.state,
            self.run.has_adapter,
        )


@dataclass(frozen=True, slots=True)
class Slot:
    """Components that follow the world together."""

    components: Sequence[gr.blocks.Block]
    show: Callable[[Now], Sequence[Any]]
    """What they show: a value or an update for each."""
    mark: Callable[[Now], object] | None = None
    """Something cheap that differs whenever `show` would; `show` itself where there is nothing cheaper."""


def slot(component: gr.blocks.Block, show: Callable[[Now], Any], mark: Callable[[Now], object] | None = None) -> Slot:
    """A slot of a single component."""
    return Slot((component,), lambda now: (show(now),), mark)


def tick(desk: Desk, slots: Sequence[Slot], seen: Seen) -> list[Any]:
    """The updates of all slots, skips for those that have not changed since `seen`, and the new `seen` at the end."""
    desk.settle()
    now = Now.look(desk)
    updates: list[Any] = []
    marks: Seen = {}
    for index, one in enumerate(slots):
        shown = one.show(now) if one.mark is None else None
        mark = marks[str(index)] = hash(repr(shown if one.mark is None else one.mark(now)))
        if seen.get(str(index)) == mark:
            updates += [gr.skip() for _ in one.components]
        else:
            updates += one.show(now) if shown is None else shown
    return [*updates, marks]
