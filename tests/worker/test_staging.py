"""An export's target is whole or not there, whoever else writes, dies or runs out of room."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys

import psutil
import pytest

from qlora_studio.core.errors import StudioError
from qlora_studio.worker import staging
from qlora_studio.worker.staging import staged

WRITER = """
import sys, time
from pathlib import Path
from qlora_studio.worker.staging import staged
with staged(Path(sys.argv[1]), "dying") as stage:
    (stage.files / "half").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def writing(tmp_path):
    """Another process in the middle of an export to `out`."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    yield process
    process.kill()
    process.wait()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_target_appears_whole_and_nothing_is_left_beside_it(tmp_path):
    with staged(tmp_path / "out", "one") as stage:
        (stage.files / "a").write_text("a")
        assert not (tmp_path / "out").exists()
        stage.publish()
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["a"]


def test_an_empty_folder_is_taken_and_a_filled_one_is_somebodys(tmp_path):
    (tmp_path / "out").mkdir()
    with staged(tmp_path / "out", "one") as stage:
        stage.publish()
    (tmp_path / "out" / "theirs").write_text("theirs")
    with (
        pytest.raises(StudioError, match="filled by somebody else meanwhile"),
        staged(tmp_path / "out", "two") as stage,
    ):
        (stage.files / "mine").write_text("mine")
        stage.publish()
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["theirs"]


def test_of_two_that_end_together_the_first_stays_whole(tmp_path):
    """The second began before the first had a lock to be seen: its name is taken when it comes to it."""
    with staged(tmp_path / "out", "one") as one, staged(tmp_path / "elsewhere", "two") as two:
        (one.files / "one").write_text("1")
        (two.files / "two").write_text("2")
        one.publish()
        with pytest.raises(StudioError, match="filled by somebody else"):
            type(two)(tmp_path / "out", two.place).publish()
    assert names(tmp_path / "out") == ["one"]


def test_a_second_export_to_the_same_folder_waits_for_nobody_and_harms_nobody(tmp_path, writing):
    with pytest.raises(StudioError, match="Another export is being written to this folder"):
        staged(tmp_path / "out", "second").__enter__()
    assert names(tmp_path) == [".out.dying.part"] and (tmp_path / ".out.dying.part" / "files" / "half").exists()


def test_what_a_killed_export_left_is_swept_by_the_next(tmp_path, writing):
    writing.send_signal(signal.SIGKILL)
    writing.wait()
    assert names(tmp_path) == [".out.dying.part"], "the target never appeared"
    with staged(tmp_path / "out", "next") as stage:
        assert names(tmp_path) == [".out.next.part"]
        stage.publish()
    assert names(tmp_path) == ["out"]


def test_what_looks_like_a_leftover_and_is_not_ours_stays(tmp_path):
    theirs = tmp_path / ".out.backup.part"
    theirs.mkdir()
    (theirs / "photos").write_text("x")
    (tmp_path / "world" / "files").mkdir(parents=True)
    (tmp_path / "world" / "lock").touch()
    (tmp_path / ".out.link.part").symlink_to(tmp_path / "world")
    with staged(tmp_path / "out", "one") as stage:
        stage.publish()
    assert (theirs / "photos").exists() and (tmp_path / "world" / "files").exists()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_a_cancel_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)), staged(tmp_path / "out", "one") as stage:
        (stage.files / "half").write_text("half")
        raise error
    assert names(tmp_path) == []


def test_names_with_signs_of_patterns_are_swept_by_their_own_name(tmp_path):
    for name in ("a[b]", "a*"):
        (tmp_path / f".{name}.old.part" / "files").mkdir(parents=True)
        (tmp_path / f".{name}.old.part" / "lock").touch()
    (tmp_path / ".ab.old.part" / "files").mkdir(parents=True)
    (tmp_path / ".ab.old.part" / "lock").touch()
    for name in ("a[b]", "a*"):
        with staged(tmp_path / name, "new") as stage:
            stage.publish()
    assert names(tmp_path) == [".ab.old.part", "a*", "a[b]"]


def test_everything_is_on_the_disk_before_the_target_has_its_name(tmp_path, monkeypatch):
    synced = []

    def sync(path):
        synced.append((path.relative_to(tmp_path).as_posix(), (tmp_path / "out").exists()))

    monkeypatch.setattr(staging, "sync", sync)
    with staged(tmp_path / "out", "one") as stage:
        (stage.files / "deep").mkdir()
        (stage.files / "deep" / "a").write_text("a")
        stage.publish()
    place = ".out.one.part/files"
    assert sorted(synced[:-2]) == [(f"{place}/deep", False), (f"{place}/deep/a", False)]
    assert synced[-2:] == [(place, False), (".", True)]


@pytest.mark.skipif(sys.platform == "win32", reason="counts file descriptors")
def test_an_export_that_is_over_holds_no_file_open(tmp_path):
    process = psutil.Process()
    before = process.num_fds()
    for published in (True, False):
        with staged(tmp_path / "out", "one") as stage:
            assert process.num_fds() == before + 1, "its lock"
            if published:
                stage.publish()
        assert process.num_fds() == before


def test_the_folder_around_a_target_is_made(tmp_path):
    with staged(tmp_path / "deep" / "er" / "out", "one") as stage:
        stage.publish()
    assert names(tmp_path / "deep" / "er") == ["out"]
