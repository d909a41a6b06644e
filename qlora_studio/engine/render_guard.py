"""A clock and a bound on memory for every conversation that a template renders, however many there are.

A trial in a process of its own (`template_vetting.py`) cannot know what a template does with a row it never saw: one may
loop on long messages only. Here a thread looks a few times a second for a rendering that goes on too long and ends it
inside; on Linux no rendering may add more than a bound to the address space, so that one huge text is an error in time.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from qlora_studio.core.errors import TemplateStopped

ROW_SECONDS = 10.0
"""A conversation of a million characters takes a template milliseconds."""
ROW_BYTES = 1 << 30
"""What a process may take while a row is rendered; the tokenizer's thread, at work on the batch before, takes of it too
(`data.sets.prepare` keeps its batches small), and where it got nothing it would end the process."""
THREAD_BYTES = 144 << 20
"""Address space that a new thread may take beside: while rows are rendered, the tokenizer's own threads begin in another
thread, one a core and one that feeds them, and each reserves a stack and, for a moment, 128 MiB for glibc's heap."""
LOOK_SECONDS = 0.25
STATM = Path("/proc/self/statm")
HINT = "Leave the row out, or choose a built-in template by name."


class _Ended(BaseException):
    """Raised inside a rendering by the watching thread. No `except Exception` of a template's machinery holds it."""


def _take_interruption(thread: int) -> None:
    """Meets the exception that was thrown into this thread, which may not have come yet, so that it comes nowhere else.

    A new one takes the place of one that waits. To take it back instead would leave Python looking for it at every call,
    and for ever where each line is traced (CPython 3.11).
    """
    with contextlib.suppress(_Ended):
        _interrupt(thread)
        while True:
            pass


def _interrupt(thread: int) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_Ended))


class RenderGuard:
    """Watches the renderings of one tokenizer, in whatever threads they are."""

    def __init__(self) -> None:
        self.row_bytes = ROW_BYTES
        self._forget()

    def _forget(self) -> None:
        """As in the beginning: a fork leaves the watching thread behind, and maybe a lock that it held."""
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._since: dict[int, float] = {}
        """When the rendering of each thread began."""
        self._ended: set[int] = set()
        """Threads whose rendering was ended and that have not noticed yet."""
        self._watcher: threading.Thread | None = None
        self._space = 0
        """The bound on the address space, and when it was worked out."""
        self._space_at = float("-inf")
        self._was: tuple[int, int] | None = None

    def run(self, render: Callable[[], str]) -> str:
        """What `render` returns. Raises TemplateStopped where it takes too long or too much memory."""
        try:
            return self._run(render)
        except _Ended:
            raise TemplateStopped(
                f"The chat template does not come to an end: it was stopped after {ROW_SECONDS:.0f} seconds.", HINT
            ) from None
        except MemoryError:
            raise TemplateStopped(
                f"The chat template takes more than {self.row_bytes >> 20} MB of memory.", HINT
            ) from None

    def _run(self, render: Callable[[], str]) -> str:
        me = threading.get_ident()
        if os.getpid() != self._process:
            self._forget()
        with self._lock:
            self._begin(me)
        try:
            return render()
        finally:
            try:
                ended = self._finish(me)
            except _Ended:  # it came only now, and comes once
                ended = self._finish(me)
            if ended:
                raise _Ended

    def _begin(self, me: int) -> None:
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._watch, daemon=True)
            self._watcher.start()
        if not self._since:
            self._bound_memory()
        self._since[me] = time.monotonic()

    def _finish(self, me: int) -> bool:
        """Whether the rendering was ended."""
        with self._lock:
            self._since.pop(me, None)
            if not self._since:
                self._free_memory()
            if me not in self._ended:
                return False
            _take_interruption(me)
            self._ended.discard(me)
            return True

    def _watch(self) -> None:
        while True:
            time.sleep(LOOK_SECONDS)
            now = time.monotonic()
            with self._lock:
                for thread, since in self._since.items():
                    if now - since > ROW_SECONDS and thread not in self._ended:
                        self._ended.add(thread)
                        _interrupt(thread)

    def _bound_memory(self) -> None:
        """Bounds what this process may add to its address space; elsewhere than on Linux only the time counts."""
        if sys.platform != "linux":
            return
        import resource

        now = time.monotonic()
        if now - self._space_at > LOOK_SECONDS:  # reading it for every row would cost more than many rows do
            pages = int(STATM.read_text(encoding="ascii").split()[0])
            beside = self.row_bytes + THREAD_BYTES * ((os.cpu_count() or 1) + 1)
            self._space, self._space_at = pages * os.sysconf("SC_PAGE_SIZE") + beside, now
        self._was = resource.getrlimit(resource.RLIMIT_AS)
        soft = self._space if self._was[0] == resource.RLIM_INFINITY else min(self._space, self._was[0])
        resource.setrlimit(resource.RLIMIT_AS, (soft, self._was[1]))

    def _free_memory(self) -> None:
        if self._was is not None:
            import resource

            resource.setrlimit(resource.RLIMIT_AS, self._was)
            self._was = None
