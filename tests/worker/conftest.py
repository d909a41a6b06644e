"""What tests of real workers share: the kill benchmark as a module, a home with its tiny model, and a run of three steps."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from qlora_studio.core.jobs import TrainRequest
from qlora_studio.worker import train
from tests.worker.small_home import Done, SmallHome

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def harness():
    """The benchmark's way to fork, kill and compare workers."""
    if sys.platform == "win32":
        pytest.skip("forks its workers")
    return load_harness()


def load_harness():
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


@pytest.fixture(scope="session")
def small_files(tmp_path_factory) -> SmallHome:
    """A home whose base and rows nobody changes; its templates are not tried yet."""
    return SmallHome.make(tmp_path_factory.mktemp("small"), load_harness().make_base)


@pytest.fixture
def quiet_threads(monkeypatch):
    """A process whose tokenizer has used its threads cannot fork, as tests of kills do."""
    monkeypatch.setattr("qlora_studio.worker.rows.all_cores", nullcontext)


@pytest.fixture
def small(small_files, tmp_path, quiet_threads) -> SmallHome:
    """The same in a copy of its own."""
    return small_files.copy(tmp_path / "own")


@pytest.fixture(scope="session")
def trained_files(small_files, tmp_path_factory) -> Done:
    """A run of three steps, done in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qlora_studio.worker.rows.all_cores", nullcontext)
        patch.setattr("qlora_studio.worker.train.vet_once", lambda *_: None)
        done = small_files.copy(tmp_path_factory.mktemp("trained") / "own").context(TrainRequest())
        done.work(train)
    return done


@pytest.fixture
def trained(trained_files, tmp_path, quiet_threads) -> SmallHome:
    """A home of its own in which the run `one` has ended."""
    shutil.copytree(trained_files.home.root, tmp_path / "trained")
    return SmallHome(type(trained_files.home)(tmp_path / "trained"), trained_files.context.config())
