"""A lock ends with its process, and asking for it takes nothing."""

from __future__ import annotations

import os
import struct
import sys
import threading
import time
from types import SimpleNamespace

import psutil
import pytest

from qlora_studio.runs import lock as lock_module
from qlora_studio.runs.lock import FAR, ProcessLock, is_held, read_words
from tests.runs.holders import held


def test_a_lock_is_seen_by_others_until_its_process_is_killed(tmp_path):
    path = tmp_path / "a.lock"
    assert not is_held(path)
    with held(path, "me") as process:
        assert is_held(path) and read_words(path) == "me"
        assert not ProcessLock(path).acquire(0.1)
        process.kill()
        process.wait()
        assert not is_held(path)
    taken = ProcessLock(path, "you")
    assert taken.acquire() and read_words(path) == "you"
    taken.release()


def test_probes_never_make_a_dead_job_look_alive_nor_keep_a_worker_from_starting(tmp_path):
    path = tmp_path / "a.lock"
    path.touch()
    answers: list[bool] = []
    until = time.monotonic() + 0.5

    def probe() -> None:
        while time.monotonic() < until:
            answers.append(is_held(path))

    threads = [threading.Thread(target=probe) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) > 100 and not any(answers)
    stop = threading.Event()
    asking = threading.Thread(target=lambda: [is_held(path) for _ in iter(stop.is_set, True)])
    asking.start()
    with held(path):  # the holder waits for nothing: one attempt, while another process asks without a pause
        pass
    stop.set()
    asking.join()


def test_on_windows_a_far_byte_is_locked_and_a_question_takes_it_for_a_moment(tmp_path, monkeypatch):
    """What a stand-in of `msvcrt` hears: where the file stands each time, and what is locked."""
    heard, busy = [], []

    def locking(handle, how, count):
        heard.append((how, count, os.lseek(handle, 0, os.SEEK_CUR)))
        if busy:
            raise OSError("somebody else has it")

    windows = SimpleNamespace(locking=locking, LK_NBLCK="take", LK_UNLCK="leave")
    monkeypatch.setattr(lock_module, "msvcrt", windows, raising=False)
    monkeypatch.setattr(lock_module, "sys", SimpleNamespace(platform="win32"))
    path = tmp_path / "a.lock"
    taken = ProcessLock(path, "me")
    assert taken.acquire() and heard == [("take", 1, FAR)]
    assert read_words(path) == "me", "what is written begins where the file begins"
    taken.release()
    heard.clear()
    assert not is_held(path) and heard == [("take", 1, FAR), ("leave", 1, FAR)]
    busy.append(True)
    heard.clear()
    assert is_held(path) and heard == [("take", 1, FAR)]
    assert not ProcessLock(path, "you").acquire() and read_words(path) == "me"


@pytest.mark.skipif(sys.platform == "win32", reason="counts file descriptors")
def test_a_lock_that_is_held_is_waited_for_only_as_long_as_was_said(tmp_path, monkeypatch):
    """A refused one leaves no file open, and what the holder said stays."""
    path, slept, now = tmp_path / "a.lock", [], [100.0]
    process = psutil.Process()
    with held(path, "me"):
        before = process.num_fds()

        def sleep(seconds):
            slept.append(seconds)
            now[0] += 0.5

        monkeypatch.setattr(lock_module, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
        assert not ProcessLock(path, "you").acquire() and slept == []
        assert not ProcessLock(path, "you").acquire(1) and len(slept) == 2
        assert process.num_fds() == before and read_words(path) == "me"


@pytest.mark.skipif(sys.platform == "win32", reason="counts file descriptors")
def test_a_lock_is_left_once_and_its_words_are_those_of_the_newest_holder(tmp_path):
    path, before = tmp_path / "a.lock", psutil.Process().num_fds()
    path.write_text("somebody with a longer name")
    lock = ProcessLock(path, "me")
    lock.release()
    assert lock.acquire() and read_words(path) == "me"
    for _ in range(2):
        lock.release()
    assert psutil.Process().num_fds() == before and not is_held(path)
    assert (read_words(tmp_path / "none"), is_held(tmp_path / "none")) == ("", False)
    fresh = ProcessLock(tmp_path / "b.lock")
    assert fresh.acquire() and read_words(tmp_path / "b.lock") == ""
    assert (tmp_path / "b.lock").stat().st_mode & 0o777 == 0o600, "nobody else reads who works"
    fresh.release()


@pytest.mark.skipif(sys.platform == "win32", reason="knows no asking")
@pytest.mark.parametrize(
    ("darwin", "layout", "asked"),
    [(True, "qqihh", (FAR, 1, 0, 3, 0)), (False, "hhqqi", (3, 0, FAR, 1, 0))],
    ids=["macOS", "Linux"],
)
def test_each_system_is_asked_in_its_own_layout(tmp_path, monkeypatch, darwin, layout, asked):
    """Whether a lock for writing on the far byte would be kept from anybody, by whom ever, from the file's start."""
    heard, kind = [], []

    def ask(handle, command, data):
        heard.append((command, struct.unpack(layout, data)))
        answer = (FAR, 1, 42, kind[-1], 0) if darwin else (kind[-1], 0, FAR, 1, 42)
        return struct.pack(layout, *answer)

    monkeypatch.setattr(lock_module, "fcntl", SimpleNamespace(F_WRLCK=3, F_UNLCK=2, F_GETLK=7, fcntl=ask))
    monkeypatch.setattr(lock_module, "_DARWIN", darwin)
    monkeypatch.setattr(lock_module, "_LAYOUT", layout)
    path = tmp_path / "a.lock"
    path.touch()
    for answer, is_kept in ((2, False), (3, True), (1, True)):
        kind.append(answer)
        assert is_held(path) is is_kept
    assert heard == [(7, asked)] * 3
