"""The memory benchmark is rehearsed from end to end: every plan is measured, and a run forced out of memory ends alike."""

import pytest

from benchmarks import gpu_memory
from tests.benchmarks.rehearsals import NOT_RUN, run, table

pytestmark = pytest.mark.slow


def test_without_a_card_it_says_that_it_has_not_been_run():
    done = run("gpu_memory")
    assert (done.returncode, done.stdout) == (2, NOT_RUN)


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
