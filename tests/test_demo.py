"""README's first command, after the installation: the whole way, with the effect measured."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]


def test_the_demo_teaches_its_form_and_the_merged_model_says_the_same(home_with_model):
    done = subprocess.run(
        [sys.executable, "-m", "qlora_studio", "demo"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=900,
    )
    output = " ".join(done.stdout.split())
    assert done.returncode == 0, done.stdout + done.stderr
    form = re.search(r"Answers in the taught form: base (\d) of 6, tuned (\d) of 6\.", output)
    assert form and int(form[1]) == 0 and int(form[2]) >= 5, output
    loss = re.search(r"Held-out loss: base ([\d.]+), tuned ([\d.]+) \([-+.\d]+\) over (\d+) rows\.", output)
    assert loss and float(loss[2]) < 0.7 * float(loss[1]) and int(loss[3]) >= 6
    check = re.search(r"same next token as in the chat at ([\d.]+)% of \d+ positions, KL ([\d.]+) nats", output)
    assert check and float(check[1]) >= 95 and float(check[2]) < 0.02
    merged = re.search(r"Answers of the merged model in the taught form: (\d) of 6\.", output)
    assert merged and int(merged[1]) >= 5
    assert (home_with_model / "exports" / "demo" / "model.safetensors").exists()
    assert "qlora-studio ui" in output
