"""QLoRA Studio's training loop beside TRL's, on one processor thread: `python benchmarks/train_cpu.py MODEL_FOLDER`.

The same rows, base (NF4, double quantisation, bf16), rank and number of rows per step; each contender in a process of its
own, in turns. Reported: real tokens (no padding) per second of processor time over the training steps, and the most
memory the process held. Processor time, because wall time on a shared machine says nothing.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONTENDERS = ("studio", "trl defaults", "trl without checkpointing")
ROUNDS, STEPS, ROWS, RANK, RATE = 2, 6, 8, 16, 2e-4
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "GOMP_SPINCOUNT": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONPATH": str(ROOT),
}


def rows(folder: Path) -> list[Any]:
    """The demo rows as the studio tokenises them."""
    from qlora_studio.core.config import DataConfig
    from qlora_studio.data.formats.registry import convert, find_format
    from qlora_studio.data.readers.files import read_rows
    from qlora_studio.data.sets.prepare import prepare
    from qlora_studio.engine.tokenizer import load_tokenizer

    alpaca = find_format("alpaca")
    file = ROOT / "assets" / "demo" / "pip.json"
    conversations = [convert(row, alpaca, {}) for row in read_rows(file)]
    return list(prepare(conversations, load_tokenizer(folder), DataConfig()).examples)[: STEPS * ROWS]


def run_studio(folder: Path, examples: list[Any]) -> tuple[float, int]:
    """Seconds of processor time and real tokens of the steps."""
    import torch

    from qlora_studio.core.config import LoraSettings, TrainConfig
    from qlora_studio.core.steps import Step
    from qlora_studio.engine import load
    from qlora_studio.engine.accelerator.cpu import CpuAccelerator
    from qlora_studio.engine.loop import TrainingLoop
    from qlora_studio.engine.setup import Setup
    from qlora_studio.home import Home
    from qlora_studio.planner.fit import make_plan
    from qlora_studio.planner.machine import read_machine
    from qlora_studio.planner.shape import read_shape

    accelerator = CpuAccelerator()
    accelerator.prepare()
    config = TrainConfig().replace({"optim.optimizer": "adamw", "optim.learning_rate": RATE, "lora.rank": RANK})
    model = load.load_base(folder, load.Device(accelerator, torch.bfloat16))
    adapter = load.attach_adapter(model, LoraSettings(rank=RANK), torch.float32, 1)
    machine = read_machine(Home.find()).model_copy(update={"cards": ()})
    plan = make_plan(config, read_shape(folder, folder.name), machine, [len(one.input_ids) for one in examples])
    setup = Setup(config, plan, accelerator, adapter, examples, [], folder, "x")
    training = TrainingLoop(setup, lambda event: None, lambda: "")
    steps = [Step(tuple(range(start, start + ROWS)), 0.0) for start in range(0, STEPS * ROWS, ROWS)]
    training.steps = steps
    training._take(steps[0])  # warm-up
    begun = time.process_time()
    for step in steps[1:]:
        training._take(step)
    return time.process_time() - begun, sum(len(example.input_ids) for example in examples[ROWS:])


def run_trl(folder: Path, examples: list[Any], checkpointing: bool) -> tuple[float, int]:
    import tempfile

    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=four_bit, dtype=torch.bfloat16)
    data = Dataset.from_list([{"input_ids": list(one.input_ids), "labels": one.labels()} for one in examples])
    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            marks.append(time.process_time())

    arguments = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=ROWS,
        max_steps=STEPS,
        learning_rate=RATE,
        optim="adamw_torch",
        logging_steps=1,
        report_to=[],
        bf16=True,
        max_length=None,
        activation_checkpointing=checkpointing,
        gradient_checkpointing=checkpointing,
        train_sampling_strategy="sequential",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[Clock()],
    )
    trainer.train()
    return marks[-1] - marks[0], sum(len(example.input_ids) for example in examples[ROWS:])


def contend(name: str, folder: Path) -> None:
    """Runs one contender in this process and prints its result as the last line."""
    examples = rows(folder)
    if name == "studio":
        seconds, tokens = run_studio(folder, examples)
    else:
        seconds, tokens = run_trl(folder, examples, checkpointing=name == "trl defaults")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"tokens_per_cpu_second": tokens / seconds, "peak_bytes": peak}))


def main(folder: Path) -> None:
    results: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for _ in range(ROUNDS):
        for name in CONTENDERS:
            command = [sys.executable, __file__, str(folder), name]
            done = subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{name} failed: {done.stderr.strip().splitlines()[-1]}")
                continue
            results[name].append(json.loads(done.stdout.strip().splitlines()[-1]))
    print("| contender | tokens per CPU second, best of runs (all) | times TRL's defaults | peak MiB |")
    print("|---|---|---|---|")
    reference = max(run["tokens_per_cpu_second"] for run in results["trl defaults"])
    for name, runs in results.items():
        speeds = sorted((run["tokens_per_cpu_second"] for run in runs), reverse=True)
        peak = min(run["peak_bytes"] for run in runs) / 2**20
        shown = ", ".join(f"{speed:.0f}" for speed in speeds)
        print(f"| {name} | {speeds[0]:.0f} ({shown}) | {speeds[0] / reference:.2f} | {peak:.0f} |")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        contend(sys.argv[2], Path(sys.argv[1]))
    elif len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:
        sys.exit("Give the folder of a small model: python benchmarks/train_cpu.py MODEL_FOLDER")
