"""A killed guard does not leave the queue standing while the page is open."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from qlora_studio.ui.server.queue_watch import QueueWatch


class Watched:
    """A page's looks at a machine, and how often the queue was started."""

    def __init__(self) -> None:
        self.starts = 0
        self.watch = QueueWatch(SimpleNamespace(queue=self))  # type: ignore[arg-type]

    def start_next(self) -> None:
        self.starts += 1

    def look(self, state: str, queued: tuple[str, ...] = ("next",)) -> int:
        run = SimpleNamespace(name="one", state=state)
        world: Any = SimpleNamespace(
            runs={"one": run}, training=run if state == "running" else None, queued=list(queued)
        )
        self.watch.settle(world)
        self.watch.wait()
        return self.starts


def test_the_next_run_is_started_once_when_the_one_at_work_is_gone_without_a_word():
    watched = Watched()
    assert watched.look("interrupted") == 0, "one that nobody saw at work is left alone"
    assert watched.look("running") == 0
    assert watched.look("interrupted") == 1
    assert watched.look("interrupted") == 1


@pytest.mark.parametrize("state", ["finished", "failed", "stopped", "paused"])
def test_a_run_that_said_its_last_word_was_followed_by_its_guard(state):
    watched = Watched()
    watched.look("running")
    assert watched.look(state) == 0


def test_nothing_is_started_where_nothing_waits():
    watched = Watched()
    watched.look("running")
    assert watched.look("interrupted", queued=()) == 0
