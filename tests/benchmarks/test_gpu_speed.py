"""The speed benchmark is rehearsed from end to end: every line has figures, or says why it has none."""

import importlib.util
import re

import pytest

from benchmarks import gpu_speed
from benchmarks.gpu_steps import CONTENDERS
from tests.benchmarks.rehearsals import NOT_RUN, run, table

pytestmark = pytest.mark.slow


def test_without_a_card_it_says_that_it_has_not_been_run():
    done = run("gpu_speed")
    assert (done.returncode, done.stdout) == (2, NOT_RUN)


def expected_speed(contender):
    """What stands beside a contender: a rate, or the package that is not here."""
    if absent := gpu_speed.missing(contender):
        return f"{absent} is not installed"
    on_cards = ("unsloth", "peft + liger", "trl") if importlib.util.find_spec("triton") else ("unsloth",)
    return r"exit \d+: .+" if contender in on_cards else r"\d+"  # TRL's loss takes Triton's kernels where they are


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
