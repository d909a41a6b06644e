"""The card benchmark says plainly that it was not run where there is no card."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_without_a_card_it_says_that_it_has_not_been_run():
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "benchmarks/gpu_memory.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (
        2,
        "This computer has no CUDA card: the benchmark has not been run.\n",
    )
