"""A lock that dies with its process, and a question that only asks: who holds it, without taking it for a moment.

A probe that takes the lock it tests makes a dead job look alive to the next probe, and can take it from a worker that
is starting. POSIX record locks can be asked (`F_GETLK`); they belong to a process, so a file must be opened once in it.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import time
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

POLL_SECONDS = 0.02
FAR = 1 << 30
"""The byte that is locked: beyond what is written, so that on Windows the holder's words can still be read."""
_DARWIN = sys.platform == "darwin"
_LAYOUT = "qqihh" if _DARWIN else "hhqqi"
"""`struct flock`: Linux has type, whence, start, length, process; macOS start, length, process, type, whence."""


class ProcessLock:
    """Held by one process at a time, released by its end however it comes. `words` tell others who it is."""

    def __init__(self, path: Path, words: str = "") -> None:
        self.path, self.words = path, words
        self._handle: int | None = None

    def acquire(self, timeout_seconds: float = 0) -> bool:
        """Takes the lock, waiting at most so long; False where another process keeps it."""
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        until = time.monotonic() + timeout_seconds
        while not _take(handle):
            if time.monotonic() >= until:
                os.close(handle)
                return False
            time.sleep(POLL_SECONDS)
        os.truncate(self.path, 0)
        os.write(handle, self.words.encode())
        self._handle = handle
        return True

    def release(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def is_held(path: Path) -> bool:
    """Whether a process holds the lock of this file. Asks, and takes nothing, except on Windows, which knows no asking.

    The process that holds a lock must not ask for its own: closing the file here would release it.
    """
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        return _is_held(handle)
    finally:
        os.close(handle)


def read_words(path: Path) -> str:
    """What the newest holder wrote about itself."""
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""


def _take(handle: int) -> bool:
    try:
        if sys.platform == "win32":
            os.lseek(handle, FAR, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
        else:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, FAR)
    except OSError:
        return False
    return True


def _is_held(handle: int) -> bool:
    if sys.platform == "win32":
        if not _take(handle):
            return True
        os.lseek(handle, FAR, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)
        return False
    wanted = (FAR, 1, 0, fcntl.F_WRLCK, 0) if _DARWIN else (fcntl.F_WRLCK, 0, FAR, 1, 0)
    answer = struct.unpack(_LAYOUT, fcntl.fcntl(handle, fcntl.F_GETLK, struct.pack(_LAYOUT, *wanted)))
    kind = answer[3] if _DARWIN else answer[0]
    return bool(kind != fcntl.F_UNLCK)
