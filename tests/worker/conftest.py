"""What tests of real workers share: the kill benchmark as a module, and a home with its tiny model."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def harness():
    """The benchmark's way to fork, kill and compare workers."""
    if sys.platform == "win32":
        pytest.skip("forks its workers")
    spec = importlib.util.spec_from_file_location("kill_runs", ROOT / "benchmarks" / "kill_runs.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["kill_runs"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def whole(harness, tmp_path_factory):
    """A home, a config, and what the undisturbed run of it came to, which is the run named `run-0`."""
    home, config = harness.make_home(tmp_path_factory.mktemp("kills"))
    folder = harness.new_run(home, config, 0)
    assert harness.end(harness.begin(folder, home)) == 0, folder.log.read_text()
    return home, config, harness.read_record(folder)
