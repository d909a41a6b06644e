"""Whether a plan holds for a whole run on a processor: 300 steps of real rows of ever new lengths.

    python benchmarks/long_run.py MODEL_FOLDER [--data FILE] [--steps N] [--tokens N]

Prints the most memory the process held and the trained tokens a second of processor time, every 50 steps, beside the
plan and the probe. Processor time, because wall time on a shared machine says nothing. Ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import datetime
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("USE_HUB_KERNELS", "0")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch

from qlora_studio.core import events as ev
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.plan import GIB
from qlora_studio.data.formats.registry import convert, find_format
from qlora_studio.data.readers.files import read_rows
from qlora_studio.data.sets.prepare import prepare
from qlora_studio.engine.accelerator.cpu import CpuAccelerator
from qlora_studio.engine.loaded import load_for_training
from qlora_studio.engine.loop import train
from qlora_studio.engine.setup import Setup
from qlora_studio.engine.tokenizer import load_tokenizer
from qlora_studio.home import Home
from qlora_studio.planner.fit import make_plan
from qlora_studio.planner.machine import read_machine
from qlora_studio.planner.shape import read_shape

DEMO = Path(__file__).resolve().parents[1] / "assets" / "demo" / "pip.json"
EVERY = 50


def run(folder: Path, data: Path, steps: int, tokens: int) -> None:
    """One training, and its lines."""
    CpuAccelerator().prepare()
    values = {"optim.max_steps": steps, "optim.epochs": 1000.0, "optim.batch_tokens": tokens, "data.max_length": tokens}
    config = TrainConfig().replace(values | {"optim.learning_rate": 2e-4, "evaluation.before": False})
    alpaca = find_format("alpaca")
    rows = prepare([convert(row, alpaca, {}) for row in read_rows(data)], load_tokenizer(folder), config.data)
    lengths = [len(one.input_ids) for one in rows.examples]
    machine = read_machine(Home.find()).model_copy(update={"cards": (), "correction": 1.0})
    plan = make_plan(config, read_shape(folder, folder.name), machine, lengths)
    loaded = load_for_training(folder, config, plan)
    print(f"{datetime.date.today()}, torch {torch.__version__}, {torch.get_num_threads()} threads, {folder.name}")
    print(f"{len(lengths)} rows of {min(lengths)} to {max(lengths)} tokens, {len(set(lengths))} lengths; ", end="")
    print(f"{tokens} tokens a step, micro-batches of {plan.micro_batch_tokens}\n")
    print("| | GiB | tokens/CPU s |\n|---|---|---|")
    print(f"| plan | {plan.estimate.total_bytes / GIB:.2f} | |", flush=True)
    probe, seen, begun = 0, 0, time.process_time()

    def emit(event: ev.Event) -> None:
        nonlocal probe, seen, begun
        if isinstance(event, ev.ProbeMeasured):
            probe, begun = event.measured_bytes, time.process_time()
            print(f"| probe | {probe / GIB:.2f} | |", flush=True)
        if isinstance(event, ev.StepLogged):
            seen += event.tokens
            if event.step % EVERY == 0:
                speed = seen / (time.process_time() - begun)
                share = event.peak_bytes / probe - 1
                print(f"| step {event.step} | {event.peak_bytes / GIB:.2f} ({share:+.1%}) | {speed:.0f} |", flush=True)
                seen, begun = 0, time.process_time()

    with tempfile.TemporaryDirectory() as out:
        train(
            Setup(config, plan, loaded.device.accelerator, loaded.model, rows.examples, [], Path(out), "x"), emit, str
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a model in transformers format")
    parser.add_argument("--data", type=Path, default=DEMO, help="rows in the Alpaca format")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=256, help="of a step")
    arguments = parser.parse_args()
    run(arguments.folder, arguments.data, arguments.steps, arguments.tokens)


if __name__ == "__main__":
    main()
