"""The benchmarks for a card are rehearsed from end to end without one: every line has figures, or says why it has none."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_memory, gpu_speed
from benchmarks.gpu_steps import CONTENDERS

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


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


@pytest.mark.parametrize("script", ["gpu_memory", "gpu_speed"])
def test_without_a_card_it_says_that_it_has_not_been_run(script):
    done = run(script)
    assert (done.returncode, done.stdout) == (2, "This computer has no CUDA card: the benchmark has not been run.\n")


def expected_speed(contender):
    """What stands beside a contender: a rate, or the package that is not here."""
    absent = gpu_speed.missing(contender)
    return f"{absent} is not installed" if absent else r"\d+"


def test_every_contender_is_rehearsed_with_every_model_and_cap():
    done = run("gpu_speed", "--rehearse")
    found = {tuple(line[:3]): line[3:] for line in table(done, "| model | tokens")}
    for model in gpu_speed.MODELS:
        for contender in CONTENDERS:
            for tokens in gpu_speed.TOKENS:
                cells = found.pop((model, str(tokens), contender))
                assert re.fullmatch(expected_speed(contender), cells[0]), (model, contender, done.stderr)
        for cap in gpu_speed.CAPS_GIB:
            cells = found.pop((model, f"longest row in {cap} GB", "studio, as planned"))
            assert cells[0] == "304 tokens (planned 256)", (model, cap, done.stderr)
    assert not found


def test_contenders_here_are_not_called_absent():
    """Those of the development environment are figures above, and not reasons."""
    here = [contender for contender in CONTENDERS if not gpu_speed.missing(contender)]
    wanted = {"studio", "studio, checkpointed", "peft", "peft, checkpointed"}
    assert set(here) >= wanted | ({"trl"} if importlib.util.find_spec("trl") else set())


def test_the_speed_benchmark_begins_nothing_that_cannot_end():
    done = run("gpu_speed", "--rehearse", "--contenders", "studio", "peft", "--seconds", "1")
    lines = table(done, "| model | tokens")
    assert len(lines) == 3 * (2 + 4 + 2) and {line[3] for line in lines} == {"no time left"}


def test_every_plan_is_rehearsed_and_a_run_forced_out_of_memory_ends_alike():
    done = run("gpu_memory", "--rehearse", "--caps", "8", "24")
    plans = {tuple(line[:2]): line[2:] for line in table(done, "| model | card GB")}
    assert list(plans) == [(model, cap) for model in gpu_memory.MODELS for cap in ("8", "24")]
    for cells in plans.values():
        assert cells[0] == "1024" and float(cells[2]) > 0 and float(cells[3]) > 0, done.stderr
    forced = {line[0]: line[1:] for line in table(done, "| model | steps")}
    assert list(forced) == list(gpu_memory.MODELS)
    for steps, retried, change, loss, norm, _, bf16, fp32, bound, alike in forced.values():
        assert (steps, retried, change) == ("4 of 4", "3", "a micro-batch of 512 instead of 1024 tokens"), done.stderr
        assert (float(loss), float(norm)) == (0, 0)  # the same operations, however often memory ran out
        assert float(fp32) < float(bound) and float(fp32) < 2**-8 * float(bf16)  # rounding: 2^-16, a fault: 1
        assert alike == "yes"
