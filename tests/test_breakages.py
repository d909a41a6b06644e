"""What would break on a card and cannot be tried without one: each is put back, and the tests have to notice.

Found by reading CUDA's side of torch, transformers and bitsandbytes. Every line below is the program as it was before;
the tests run in a copy of it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ("qlora_studio", "tests")


@dataclass(frozen=True)
class Breakage:
    """A line as it is, as it was, and the tests that hold it."""

    file: str
    line: str
    was: str
    tests: str


LOAD, LOADED, LOOP = "engine/load.py", "engine/loaded.py", "engine/loop.py"
SEARCH, BUDGET, CARD = "planner/search.py", "planner/budget.py", "planner/card.py"
FIT, START, HELD = "planner/test_fit.py", "worker/test_starts.py", "engine/test_card_plan.py"

BREAKAGES = {
    "1 grouped queries without flash run on the plain kernel": Breakage(
        LOAD, "    return REPEATED_HEADS\n", '    return "sdpa"\n', "engine/test_card.py"
    ),
    "1 what repeated keys and values take is not planned": Breakage(
        BUDGET, 'return compute == "fp32" or (card', 'return False and (card', HELD
    ),
    "2 adapters in bf16 under fp16": Breakage(
        SEARCH, 'return ("fp32",) if situation.compute == "fp16" else ("fp32", "bf16")', 'return ("fp32", "bf16")', FIT
    ),
    "3 offloaded embeddings are loaded onto the card first": Breakage(
        LOAD, 'if embeddings_on_host and device.type != "cpu":', "if False:", "engine/test_load.py"
    ),
    "3 pinned memory is rounded up to powers of two": Breakage(
        "engine/kernels/offloading.py",
        "PINNED_BLOCK_BYTES = 4 * MIB",
        "PINNED_BLOCK_BYTES = 1 << 40",
        "engine/kernels/test_offloading.py",
    ),
    "3 pinned memory is not planned": Breakage(
        "planner/estimate.py",
        "taken += round(boundary * settings.checkpointed_layers)",
        "taken += round(0 * boundary)",
        FIT,
    ),
    "3 offloading more than the computer can take fits": Breakage(
        SEARCH, "> situation.host_budget_bytes", "> situation.host_budget_bytes << 40", FIT
    ),
    "4 a torch for processors trains on the processor beside a card": Breakage(CARD, "if not build.cuda:", "if False:", FIT),
    "5 expandable segments under WSL": Breakage(
        "runs/supervisor.py", " and not runs_under_wsl():", " and runs_under_wsl is not None:", START
    ),
    "5 expandable segments under Windows": Breakage(
        "runs/supervisor.py", 'if sys.platform == "linux" and', "if True and", START
    ),
    "6 a driver that is too old": Breakage(CARD, "or int(branch) >= needed", "or int(branch) >= 0", FIT),
    "6 a card without kernels": Breakage(CARD, "if has is None or has >= needed:", "if has is None or has >= (0, 0):", FIT),
    "6 an error of the card asks for another download": Breakage(
        "engine/load_faults.py", "hint = ASK_DOCTOR if _is_of_the_card(error) else", "hint = ASK_DOCTOR if False else", "engine/test_load.py"
    ),
    "7 the worker sees every card": Breakage(
        "runs/supervisor.py", 'environment["CUDA_VISIBLE_DEVICES"] = card', "pass", START
    ),
    "7 no card is chosen of several": Breakage(
        "studio/jobs.py", "return cards[0].uuid or None if len(cards) > 1 else None", "return None", "studio/test_jobs.py"
    ),
    "8 Gemma 3 in fp16": Breakage(BUDGET, 'OVERFLOWING = ("gemma3",)', "OVERFLOWING = ()", FIT),
    "9 the probe learns from allocated memory": Breakage(
        LOOP, "accelerator.peak().reserved_bytes + states", "accelerator.peak().allocated_bytes + states", HELD
    ),
    "9 a step's peak is that of allocated memory": Breakage(
        LOOP, "self.setup.accelerator.peak().reserved_bytes,", "self.setup.accelerator.peak().allocated_bytes,",
        "engine/test_card.py",
    ),
    "9 a budget below the context": Breakage(BUDGET, "    _refuse_less_than_a_context(budget, machine)\n", "", FIT),
    "9 loading does not go down the ladder": Breakage(LOADED, "if not is_out_of_memory(error):", "if True:", "engine/test_loaded.py"),
}  # fmt: skip


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of program and tests; everything else is only linked to."""
    place = tmp_path_factory.mktemp("tree")
    for entry in ROOT.iterdir():
        if entry.name in PROGRAM:
            shutil.copytree(entry, place / entry.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif not entry.name.startswith("."):
            (place / entry.name).symlink_to(entry)
    return place


@pytest.mark.slow
@pytest.mark.parametrize("broken", BREAKAGES.values(), ids=BREAKAGES)
def test_a_breakage_that_is_put_back_is_noticed(tree, broken):
    file = tree / "qlora_studio" / broken.file
    text = file.read_text(encoding="utf-8")
    assert text.count(broken.line) == 1
    file.write_text(text.replace(broken.line, broken.was), encoding="utf-8")
    options = ["-x", "-n", "0", "-m", "not browser", "-p", "no:cacheprovider", f"--rootdir={tree}"]
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, f"tests/{broken.tests}"],
            cwd=tree, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        file.write_text(text, encoding="utf-8")
    assert done.returncode == 1, done.stdout[-2000:]
    assert "FAILED" in done.stdout and "ERROR" not in done.stdout, done.stdout[-2000:]
