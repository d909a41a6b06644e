"""The benchmarks for a card say plainly that they were not run where there is none, and can be rehearsed there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(script, *arguments):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, f"benchmarks/{script}.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("script", ["gpu_memory", "gpu_speed"])
@pytest.mark.slow
def test_without_a_card_it_says_that_it_has_not_been_run(script):
    done = run(script)
    assert (done.returncode, done.stdout) == (2, "This computer has no CUDA card: the benchmark has not been run.\n")


@pytest.mark.slow
def test_the_speed_benchmark_goes_from_end_to_end_on_a_processor():
    done = run("gpu_speed", "--rehearse", "--models", "Llama-3.2-1B", "--tokens", "2048", "--caps", "8")
    lines = [line.split(" | ") for line in done.stdout.splitlines()[2:]]
    assert (done.returncode, len(lines)) == (0, 8)
    said = {line[2].strip(): line[3] for line in lines}
    for contender in ("studio", "studio, checkpointed", "peft", "peft, checkpointed", "trl"):
        assert "tokens" in said[contender] or float(said[contender]) > 0
    assert lines[-1][1:4] == ["longest row in 8 GB", "studio", "256 tokens (planned 256)"]


@pytest.mark.slow
def test_the_speed_benchmark_begins_nothing_that_cannot_end():
    done = run("gpu_speed", "--rehearse", "--models", "Llama-3.2-1B", "--contenders", "studio", "--seconds", "1")
    assert done.returncode == 0 and done.stdout.count("no time left") == 6


@pytest.mark.slow
def test_the_memory_benchmark_goes_from_end_to_end_on_a_processor():
    done = run("gpu_memory", "--rehearse")
    assert done.returncode == 0 and "exit" not in done.stdout, done.stdout
    assert "| SmolLM2-135M | 6 |" in done.stdout and "4 of 4" in done.stdout
