"""How long a history of many runs takes to list, beside the start of the command line alone, in one run.

python benchmarks/history.py [--runs 300] [--steps 10000]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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


def seconds(home: Path, *arguments: str) -> float:
    """The shortest of three commands; other work on the machine only makes them longer."""
    environment = os.environ | {"QLORA_STUDIO_HOME": str(home)}
    command = [sys.executable, "-m", "qlora_studio", *arguments]
    taken = []
    for _ in range(3):
        begun = time.perf_counter()
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        taken.append(time.perf_counter() - begun)
    return min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--steps", type=int, default=10_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        full, empty = Path(folder) / "full", Path(folder) / "empty"
        make_runs(full, arguments.runs, arguments.steps)
        begun = time.perf_counter()
        environment = os.environ | {"QLORA_STUDIO_HOME": str(full)}
        first = [sys.executable, "-m", "qlora_studio", "runs", "list"]
        subprocess.run(first, env=environment, check=True, stdout=subprocess.DEVNULL)
        first_seconds = time.perf_counter() - begun
        start = seconds(empty, "runs", "list")
        again = seconds(full, "runs", "list")
    print(f"{arguments.runs + 1} runs, one of {arguments.steps} steps")
    print(f"list, every journal read for the first time: {first_seconds - start:.2f} s beyond start-up ({start:.2f} s)")
    print(f"list, again: {again - start:.2f} s beyond start-up")


if __name__ == "__main__":
    main()
