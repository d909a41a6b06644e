"""The guard's clock in tenths of a second, its bound on memory worked out, and what a fork leaves of it."""

from __future__ import annotations

import os
import threading
import time

import pytest

from qlora_studio.core.errors import TemplateStopped
from qlora_studio.engine import render_guard
from qlora_studio.engine.render_guard import HINT, THREAD_BYTES, RenderGuard

resource = pytest.importorskip("resource")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(render_guard, "ROW_SECONDS", 0.3)
    monkeypatch.setattr(render_guard, "LOOK_SECONDS", 0.01)


def busy(seconds: float) -> str:
    """Goes on for so long unless something ends it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.001)
    return "done"


def test_a_rendering_that_goes_on_is_ended_inside_and_the_next_is_not(quick):
    guard = RenderGuard()
    for _ in range(2):
        begun = time.monotonic()
        with pytest.raises(TemplateStopped) as caught:
            guard.run(lambda: busy(5.0))
        assert 0.3 <= time.monotonic() - begun < 4
        assert caught.value.message == "The chat template does not come to an end: it was stopped after 0 seconds."
        assert caught.value.hint == HINT
        assert guard.run(lambda: "done") == "done"
    assert (guard._since, guard._ended) == ({}, set())
    watchers = [one for one in threading.enumerate() if one is guard._watcher]
    assert len(watchers) == 1 and watchers[0].daemon


class LockThatComesTooLate:
    """While a rendering that has just ended waits for this lock, the watching thread ends it."""

    def __init__(self, guard: RenderGuard) -> None:
        self.guard, self.lock, self.taken = guard, threading.Lock(), 0

    def __enter__(self) -> None:
        self.taken += 1
        if self.taken == 2:
            self.guard._ended.add(threading.get_ident())
            render_guard._interrupt(threading.get_ident())
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


def test_a_rendering_that_is_ended_as_it_finishes_leaves_nothing_behind():
    """What is thrown into it comes while it is put away: once its place stayed taken, and the next was refused for it."""
    guard, before = RenderGuard(), resource.getrlimit(resource.RLIMIT_AS)
    guard._lock = LockThatComesTooLate(guard)  # type: ignore[assignment]
    guard._watcher = threading.current_thread()
    with pytest.raises(TemplateStopped):
        guard.run(lambda: "done")
    assert (guard._since, guard._ended) == ({}, set())
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    assert guard.run(lambda: "done") == "done"


def test_only_the_thread_that_goes_on_is_ended(quick):
    guard, found = RenderGuard(), []

    def hang():
        try:
            guard.run(lambda: busy(5.0))
        except TemplateStopped:
            found.append("stopped")

    thread = threading.Thread(target=hang)
    thread.start()
    while thread.is_alive():
        assert guard.run(lambda: "done") == "done"
    assert found == ["stopped"]


def test_a_rendering_that_ends_just_as_it_is_to_be_ended_is_ended_here_and_not_later(monkeypatch):
    monkeypatch.setattr(render_guard, "LOOK_SECONDS", 60.0)
    guard, me = RenderGuard(), threading.get_ident()

    def end(thread):
        guard._ended.add(thread)
        return "late"

    with pytest.raises(TemplateStopped):
        guard.run(lambda: end(me))
    assert guard._ended == set() and guard.run(lambda: "fine") == "fine"


def test_memory_that_runs_out_is_said_with_the_bound():
    guard = RenderGuard()
    guard.row_bytes = 7 << 20

    def swell():
        raise MemoryError

    with pytest.raises(TemplateStopped) as caught:
        guard.run(swell)
    assert (caught.value.message, caught.value.hint) == ("The chat template takes more than 7 MB of memory.", HINT)


INFINITE = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


@pytest.fixture
def limits(monkeypatch, tmp_path):
    """The bounds that are set, on a Linux whose process has 1000 pages and which has three cores."""
    now, asked = [INFINITE], []
    (tmp_path / "statm").write_text("1000 7 7 7")
    monkeypatch.setattr(render_guard.sys, "platform", "linux")
    monkeypatch.setattr(render_guard, "STATM", tmp_path / "statm")
    monkeypatch.setattr(render_guard.os, "cpu_count", lambda: 3)
    monkeypatch.setattr(render_guard.os, "sysconf", {"SC_PAGE_SIZE": 4096}.__getitem__)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: now[0])

    def set_limit(kind, bounds):
        assert kind == resource.RLIMIT_AS
        now[0] = bounds
        asked.append(bounds)

    monkeypatch.setattr(resource, "setrlimit", set_limit)
    return now, asked, tmp_path / "statm"


BOUND = 1000 * 4096 + (5 << 20) + THREAD_BYTES * 4
"""What there is, what a row may add, and three threads and the one that feeds them."""


@pytest.mark.parametrize(
    ("before", "soft"), [(INFINITE, BOUND), ((BOUND + 1, 9 << 40), BOUND), ((BOUND - 1, 9 << 40), BOUND - 1)]
)
def test_memory_is_bounded_while_a_row_is_rendered_and_free_again_after_it(limits, before, soft):
    now, asked, _ = limits
    now[0] = before
    guard = RenderGuard()
    guard.row_bytes = 5 << 20
    assert guard.run(lambda: str(now[0])) == str((soft, before[1]))
    assert asked == [(soft, before[1]), before]


def test_the_bound_is_worked_out_anew_after_a_while(limits, monkeypatch):
    _, asked, statm = limits
    clock = [50.0]
    monkeypatch.setattr(render_guard.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(render_guard.RenderGuard, "_watch", lambda self: None)
    guard = RenderGuard()
    guard.row_bytes = 5 << 20
    guard.run(lambda: "first")
    statm.write_text("2000 7")
    clock[0] += render_guard.LOOK_SECONDS
    guard.run(lambda: "same")
    clock[0] += 0.01
    guard.run(lambda: "new")
    more = BOUND + 1000 * 4096
    assert [soft for soft, _ in asked if soft != resource.RLIM_INFINITY] == [BOUND, BOUND, more]


def test_a_second_rendering_neither_sets_the_bound_nor_frees_it(limits):
    _, asked, _ = limits
    guard = RenderGuard()
    guard.row_bytes = 5 << 20

    def both():
        other = threading.Thread(target=lambda: guard.run(lambda: "inner"))
        other.start()
        other.join()
        return str(len(asked))

    assert guard.run(both) == "1" and len(asked) == 2


def test_elsewhere_nothing_is_bounded(limits, monkeypatch):
    monkeypatch.setattr(render_guard.sys, "platform", "darwin")
    assert RenderGuard().run(lambda: "fine") == "fine" and limits[1] == []


def test_a_fork_begins_anew_even_where_the_lock_was_held(monkeypatch):
    guard = RenderGuard()
    guard.run(lambda: "fine")
    lock, watcher = guard._lock, guard._watcher
    assert guard.run(lambda: "fine") == "fine" and guard._watcher is watcher
    guard._since[-1] = time.monotonic()
    lock.acquire()
    child = os.getpid() + 1
    monkeypatch.setattr(render_guard.os, "getpid", lambda: child)
    assert guard.run(lambda: "fine") == "fine"
    assert guard._lock is not lock and guard._watcher is not watcher and guard._since == {}
    assert guard._process == child
