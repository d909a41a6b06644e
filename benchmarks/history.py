"""How long a history of many runs takes to list, beside an empty one in the same run: command line and page.

python benchmarks/history.py [--runs 300] [--steps 10000] [--page]

`--page` opens the Runs page in Chromium, as the tests do.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from qlora_studio.core import events as ev
from qlora_studio.core.jobs import TrainReport, TrainRequest
from qlora_studio.runs.folder import create_job
from qlora_studio.runs.journal import Journal


def make_runs(home: Path, runs: int, steps: int) -> None:
    """So many finished runs of forty steps, and one long one."""
    for number in range(runs + 1):
        job = create_job(home / "runs", f"run {number}", TrainRequest(), {"config.json": {}})
        total = steps if number == runs else 40
        journal = Journal(job.events)
        journal.append(ev.JobStarted(job="train"))
        for step in range(1, total + 1):
            journal.append(
                ev.StepLogged(
                    step=step, total_steps=total, epoch=step / total, loss=2 - step / total, learning_rate=1e-4,
                    grad_norm=1.0, tokens=4096, trained_tokens=2048, tokens_per_second=1000.0, peak_bytes=1 << 30,
                )
            )  # fmt: skip
        journal.append(ev.Finished(report=TrainReport(steps=total)))
        journal.close()


def cpu_seconds(home: Path, times: int = 3) -> float:
    """Processor time of `qlora-studio runs list`, the least of so many: other work on the machine counts little in it."""
    environment = os.environ | {"QLORA_STUDIO_HOME": str(home)}
    command = [sys.executable, "-m", "qlora_studio", "runs", "list"]
    taken = []
    for _ in range(times):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(taken)


def page_seconds(browser: Any, home: Path, newest: str, *, runs: int) -> tuple[float, float, float]:
    """Of the Runs page: its first opening, the shortest of three more, and the shortest click from Data to Runs.

    It is open once the newest run is named there, or, with no runs, what an empty page says.
    """
    environment = os.environ | {"QLORA_STUDIO_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "qlora_studio", "ui", "--no-open"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as door:
        try:
            assert door.stdout is not None
            url = next(
                found.group() for line in door.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+/?", line))
            )
            page = browser.new_page()
            shown = (
                page.locator("#runs-table" if runs else "#runs-empty")
                .get_by_text(newest if runs else "No runs")
                .filter(visible=True)
                .first
            )
            opened = []
            for _ in range(4):
                page.goto("about:blank")
                begun = time.perf_counter()
                page.goto(f"{url.rstrip('/')}/#runs")
                shown.wait_for(state="visible", timeout=60_000)
                opened.append(time.perf_counter() - begun)
            clicks = []
            for _ in range(3):
                page.locator("#tab-data-button").click()
                page.locator("#data-path").wait_for(state="visible")
                begun = time.perf_counter()
                page.locator("#tab-runs-button").click()
                shown.wait_for(state="visible")
                clicks.append(time.perf_counter() - begun)
            page.close()
            return opened[0], min(opened[1:]), min(clicks)
        finally:
            door.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--page", action="store_true", help="the Runs page in Chromium as well")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        full, empty = Path(folder) / "full", Path(folder) / "empty"
        make_runs(full, arguments.runs, arguments.steps)
        first, start, again = cpu_seconds(full, 1), cpu_seconds(empty), cpu_seconds(full)
        if arguments.page:
            from playwright.sync_api import sync_playwright

            with sync_playwright() as play:
                browser = play.chromium.launch(
                    executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=["--no-sandbox"]
                )
                without = page_seconds(browser, empty, "", runs=0)
                with_runs = page_seconds(browser, full, f"run-{arguments.runs}", runs=arguments.runs)
    print(f"{arguments.runs + 1} runs, one of {arguments.steps} steps")
    print(f"list, every journal read for the first time: {first - start:.2f} CPU s beyond start-up ({start:.2f})")
    print(f"list, again: {again - start:.2f} CPU s beyond start-up")
    if arguments.page:
        for what, bare, full_seconds in zip(
            ("opened first", "opened again", "clicked"), without, with_runs, strict=True
        ):
            print(f"Runs page {what}: {full_seconds:.2f} s, empty {bare:.2f} s, beyond it {full_seconds - bare:.2f} s")


if __name__ == "__main__":
    main()
