"""The main job as a person does it on the command line, with the real embedded model: rows, tuning, chat, weights."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "assets" / "demo" / "pip.json"
FAST = ["--set", "optim.learning_rate=2e-3", "--set", "optim.warmup_share=0"]
SMALL = ["--set", "optim.batch_tokens=256", "--max-length", "128"]


def run(*arguments: str, code: int = 0) -> str:
    """One command of the studio; its output, whitespace folded."""
    command = [sys.executable, "-m", "qlora_studio", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=600)
    assert done.returncode == code, done.stdout + done.stderr
    return " ".join((done.stdout + done.stderr).split())


@pytest.fixture(scope="module")
def trained(tmp_path_factory, smollm2):
    """A home with one short finished run named `short`."""
    home = tmp_path_factory.mktemp("home")
    (home / "models").mkdir()
    (home / "models" / "smollm2-135m-instruct").symlink_to(smollm2, target_is_directory=True)
    before = os.environ.get("QLORA_STUDIO_HOME")
    os.environ["QLORA_STUDIO_HOME"] = str(home)
    output = run("train", str(ROWS), "--name", "short", "--set", "optim.max_steps=3", *FAST, *SMALL)
    yield home, output
    if before is None:
        del os.environ["QLORA_STUDIO_HOME"]
    else:
        os.environ["QLORA_STUDIO_HOME"] = before


def test_training_says_what_it_does_and_leaves_its_record(trained):
    home, output = trained
    for words in (
        "120 rows as alpaca",
        "It fits",
        "Largest step:",
        "Held-out loss of the base:",
        "Finished after 3 steps",
    ):
        assert words in output
    folder = home / "runs" / "short"
    assert {"adapter", "config.json", "events.jsonl", "fingerprint.json", "job.json", "plan.json"} <= {
        path.name for path in folder.iterdir()
    }
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert events[0]["event"] == "started" and events[-1]["event"] == "finished"
    steps = [event for event in events if event["event"] == "step"]
    assert [event["step"] for event in steps] == [1, 2, 3] and all(event["peak_bytes"] < 4 << 30 for event in steps)
    written = "".join(path.read_text() for path in folder.rglob("*.json"))
    assert str(home) not in written, "a record names no path of this machine"


def test_the_run_is_listed_and_shown(trained):
    assert re.search(r"short .* finished 3/3", run("runs", "list"))
    shown = run("runs", "show", "short")
    assert "rank 16" in shown and "Held-out loss at step 3:" in shown


def test_both_sides_answer_and_the_same_seed_gives_the_same_answer(trained):
    ask = ("chat", "short", "--message", "What is a bicycle?", "--max-new-tokens", "12")
    both = run(*ask, "--side", "both", "--temperature", "0.8", "--seed", "3")
    assert both.startswith("base ") and " tuned " in both
    assert run(*ask, "--side", "both", "--temperature", "0.8", "--seed", "3") == both


def test_evaluation_measures_both_on_the_same_rows(trained, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("How do I boil water?\n\n")
    output = run("evaluate", "short", "--prompts", str(prompts), "--max-new-tokens", "8")
    assert "base · How do I boil water?" in output and "tuned · How do I boil water?" in output
    match = re.search(r"Held-out loss: base ([\d.]+), tuned ([\d.]+) .* over 6 rows", output)
    assert match and float(match[1]) > 0 and float(match[2]) > 0


def test_the_adapter_loads_in_peft_and_the_merged_model_in_transformers(trained, tmp_path, smollm2):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run("export", "short", "--to", str(tmp_path / "adapter"), "--what", "adapter")
    output = run("export", "short", "--to", str(tmp_path / "merged"), "--merge", "original")
    assert re.search(
        r"Check \(merged model, original\): same next token as in the chat at [\d.]+% of \d+ positions", output
    )
    ids = AutoTokenizer.from_pretrained(tmp_path / "merged")("Hello there", return_tensors="pt")
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)(**ids).logits
        base = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
        plain = base(**ids).logits
        tuned = PeftModel.from_pretrained(base, tmp_path / "adapter")(**ids).logits
    assert float((merged - tuned).norm()) < 0.2 * float((plain - tuned).norm())
    output = run("export", "short", "--to", str(tmp_path / "merged"), code=2)
    assert "This folder is not empty" in output


def test_ctrl_c_stops_cleanly_with_the_adapter_saved_and_the_run_goes_on(trained):
    home, _ = trained
    command = [
        sys.executable,
        "-m",
        "qlora_studio",
        "train",
        "pip",
        "--name",
        "cut",
        "--set",
        "optim.max_steps=12",
        *SMALL,
    ]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # under nohup it arrives ignored
    )
    events = home / "runs" / "cut" / "events.jsonl"
    until = time.monotonic() + 240
    while not (events.exists() and '"event": "step"' in events.read_text()):
        assert process.poll() is None and time.monotonic() < until, process.stdout.read() if process.stdout else ""
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0 and "Stopped after" in output, output
    assert (home / "runs" / "cut" / "adapter" / "adapter_model.safetensors").exists()
    assert "Finished at step 12 of 12." in run("runs", "resume", "cut")


def test_a_file_is_shown_with_its_trained_tokens(trained):
    output = run("data", "inspect", str(ROWS), "--model", "smollm2-135m-instruct", "--rows", "1")
    assert "⟦Answer: Lower it into boiling water" in output and "— Pip<|im_end|>⟧" in output
    assert "120 rows" in output.replace("114 rows to train and 6 held out", "120 rows")
