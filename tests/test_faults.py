"""Faults come where and when they are asked for, and never otherwise."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from qlora_studio import faults
from qlora_studio.faults import VARIABLE, InjectedError, fault


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(faults, "_passed", faults.Counter())
    monkeypatch.delenv(VARIABLE, raising=False)


def test_unless_set_it_does_nothing_and_counts_nothing():
    assert not any(fault("save.begin") for _ in range(100))
    assert not faults._passed


def test_it_comes_at_the_named_passage_of_the_named_point_and_once(monkeypatch):
    monkeypatch.setenv(VARIABLE, "save.begin:full@2")
    fault("save.begin")
    fault("save.filled")
    with pytest.raises(OSError) as caught:
        fault("save.begin")
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == "save.begin"
    fault("save.begin")


@pytest.mark.parametrize(
    ("action", "kind"), [("full", OSError), ("io", OSError), ("denied", OSError), ("oom", MemoryError), ("error", InjectedError)]
)  # fmt: skip
def test_each_action_is_its_error_at_any_point(monkeypatch, action, kind):
    monkeypatch.setenv(VARIABLE, f"*:{action}@3")
    fault("a")
    fault("b")
    with pytest.raises(kind):
        fault("c")


def test_a_value_is_asked_for_as_nan_and_several_wishes_stand_side_by_side(monkeypatch):
    monkeypatch.setenv(VARIABLE, "loss:nan@1, loss:nan@3,save:full")
    assert [fault("loss") for _ in range(4)] == [True, False, True, False]
    with pytest.raises(OSError):
        fault("save")


def test_a_wish_nobody_knows_is_refused(monkeypatch):
    monkeypatch.setenv(VARIABLE, "save:explode")
    with pytest.raises(ValueError, match="knows no action 'explode'"):
        fault("save")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_kill_leaves_no_time_for_anything():
    code = "from qlora_studio.faults import fault\ntry:\n    fault('x')\nfinally:\n    print('tidied')"
    environment = os.environ | {VARIABLE: "x:kill@1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (-9, b"")
