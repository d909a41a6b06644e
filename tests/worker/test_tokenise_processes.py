"""A real job shares its rows between processes, and none of them outlives it."""

import json
import sys
import time
from pathlib import Path

import psutil
import pytest

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.jobs import TokeniseReport
from qlora_studio.core.progress import fold
from qlora_studio.home import Home
from qlora_studio.studio import Studio

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="jobs are forked on Linux alone")]


@pytest.fixture
def studio(home_with_model, tmp_path):
    rows = [{"instruction": f"Count to {number}", "output": f"one, two, {number} " * 9} for number in range(30_000)]
    Path(tmp_path, "rows.json").write_text(json.dumps(rows))
    studio = Studio(Home(home_with_model))
    studio.data.import_rows(str(tmp_path / "rows.json"), name="rows")
    return studio


def begin(studio):
    return studio.data.tokenise(TrainConfig().replace({"data.sources": [{"name": "rows"}]}), 0)


def processes_of(job):
    return [one for one in psutil.process_iter(["cmdline"]) if str(job.folder) in " ".join(one.info["cmdline"] or ())]


def wait_for_helpers(job):
    """The worker of a job and those that it forked: the guard started the worker, the worker them."""
    until = time.monotonic() + 90
    while time.monotonic() < until:
        time.sleep(0.02)
        found = {one.pid: one for one in processes_of(job)}
        try:
            parents = {pid: one.ppid() for pid, one in found.items()}
        except psutil.NoSuchProcess:
            continue
        helpers = [pid for pid, parent in parents.items() if parents.get(parent) in found]
        if helpers:
            return found[parents[helpers[0]]], [found[pid] for pid in helpers]
    raise AssertionError("no helper was seen")


def test_rows_are_shared_and_counted(studio):
    job = begin(studio)
    _, helpers = wait_for_helpers(job)
    report = fold(studio.jobs.watch(job)).report
    assert isinstance(report, TokeniseReport)
    assert report.rows + report.held_out_rows == 30_000 and report.examples == report.rows
    assert not any(one.is_running() for one in helpers)


def test_a_killed_worker_leaves_no_helper_behind(studio):
    worker, helpers = wait_for_helpers(begin(studio))
    worker.kill()
    gone, alive = psutil.wait_procs(helpers, timeout=20)
    assert gone and not alive


def test_a_stop_ends_the_helpers(studio):
    job = begin(studio)
    _, helpers = wait_for_helpers(job)
    studio.jobs.stop(job)
    assert fold(studio.jobs.watch(job)).state == "stopped"
    assert not any(one.is_running() for one in helpers)
