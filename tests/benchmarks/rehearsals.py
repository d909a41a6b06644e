"""Runs a benchmark for a card as a person does, on a machine without one, and reads its tables."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOT_RUN = "This computer has no CUDA card: the benchmark has not been run.\n"


def run(script, *arguments):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, f"benchmarks/{script}.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def table(done, heading):
    """The cells of the lines under a table's heading, each line as a list."""
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(heading)) + 2
    width = lines[start - 1].count("|")
    found = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        assert line.count("|") == width, line
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found
