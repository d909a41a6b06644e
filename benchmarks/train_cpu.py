"""QLoRA Studio's training loop beside TRL's and a plain one on PEFT, on one processor thread.

    python benchmarks/train_cpu.py MODEL_FOLDER [--rounds N]

The same rows, base (NF4, double quantisation, bf16), rank and rows; each contender in a process of its own, in turns.
Reported: real tokens a second of processor time over the training steps, padding left out whoever computes it, and the
most memory the process held. Processor time, because wall time on a shared machine says nothing; ratios only mean
something inside one run. TRL packs by its own rule (`bfd`), so its steps hold other rows: its tokens are counted as its
collator gives them, without what it pads.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONTENDERS = ("studio", "studio checkpointed", "trl defaults", "trl without checkpointing", "trl packed", "peft")
STEPS, ROWS, RANK, RATE = 6, 8, 16, 2e-4
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


def run_studio(folder: Path, examples: list[Any], checkpointing: str = "auto") -> tuple[float, int]:
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
    config = TrainConfig().replace({
        "optim.optimizer": "adamw", "optim.learning_rate": RATE, "lora.rank": RANK,
        "memory.gradient_checkpointing": checkpointing,
    })  # fmt: skip
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


def run_trl(folder: Path, examples: list[Any], checkpointing: bool, packing: bool = False) -> tuple[float, int]:
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
    real: list[int] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            marks.append(time.process_time())
            real.append(0)

    class Counting(SFTTrainer):
        def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **more: Any) -> Any:
            mask, ids = inputs.get("attention_mask"), inputs["input_ids"]
            real[-1] += int(ids.numel() if mask is None else mask.sum())
            return super().compute_loss(model, inputs, *arguments, **more)

    real.append(0)

    arguments = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=1 if packing else ROWS,
        packing=packing,
        max_steps=STEPS,
        learning_rate=RATE,
        optim="adamw_torch",
        logging_steps=1,
        report_to=[],
        bf16=True,
        max_length=max(1024, *(len(one.input_ids) for one in examples)) if packing else None,
        activation_checkpointing=checkpointing,
        gradient_checkpointing=checkpointing,
        train_sampling_strategy="sequential",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        dataset_kwargs=None if packing else {"skip_prepare_dataset": True},
    )
    trainer = Counting(
        model=model,
        args=arguments,
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[Clock()],
    )
    trainer.train()
    return marks[-1] - marks[0], sum(real[1:-1])


def run_peft(folder: Path, examples: list[Any]) -> tuple[float, int]:
    """The loop of many tutorials: padded batches, transformers' own loss, no checkpointing."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    base = AutoModelForCausalLM.from_pretrained(folder, quantization_config=four_bit, dtype=torch.bfloat16)
    base.requires_grad_(False)
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, lora).train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE)
    begun = 0.0
    for start in range(0, STEPS * ROWS, ROWS):
        if start == ROWS:
            begun = time.process_time()
        batch = examples[start : start + ROWS]
        longest = max(len(one.input_ids) for one in batch)
        padded = [[*one.input_ids, *[0] * (longest - len(one.input_ids))] for one in batch]
        labels = [[*one.labels(), *[-100] * (longest - len(one.input_ids))] for one in batch]
        mask = [[1] * len(one.input_ids) + [0] * (longest - len(one.input_ids)) for one in batch]
        ids, targets, seen = (torch.tensor(numbers) for numbers in (padded, labels, mask))
        model(input_ids=ids, attention_mask=seen, labels=targets, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return time.process_time() - begun, sum(len(example.input_ids) for example in examples[ROWS:])


def contend(name: str, folder: Path) -> None:
    """Runs one contender in this process and prints its result as the last line."""
    examples = rows(folder)
    if name.startswith("studio"):
        seconds, tokens = run_studio(folder, examples, "full" if "checkpointed" in name else "auto")
    elif name == "peft":
        seconds, tokens = run_peft(folder, examples)
    else:
        packing = name == "trl packed"
        seconds, tokens = run_trl(
            folder, examples, checkpointing=name in ("trl defaults", "trl packed"), packing=packing
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"tokens_per_cpu_second": tokens / seconds, "peak_bytes": peak}))


def main(folder: Path, rounds: int) -> None:
    results: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds):
        for name in CONTENDERS:
            command = [sys.executable, __file__, str(folder), name]
            done = subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{name} failed: {done.stderr.strip().splitlines()[-1]}")
                continue
            print(f"{name}: {done.stdout.strip().splitlines()[-1]}", file=sys.stderr, flush=True)
            results[name].append(json.loads(done.stdout.strip().splitlines()[-1]))
    print("| contender | tokens per CPU second, best of runs (all) | times TRL's defaults | peak MiB |")
    print("|---|---|---|---|")
    reference = max(run["tokens_per_cpu_second"] for run in results["trl defaults"])
    for name, runs in results.items():
        if not runs:
            continue
        speeds = sorted((run["tokens_per_cpu_second"] for run in runs), reverse=True)
        peak = min(run["peak_bytes"] for run in runs) / 2**20
        shown = ", ".join(f"{speed:.0f}" for speed in speeds)
        print(f"| {name} | {speeds[0]:.0f} ({shown}) | {speeds[0] / reference:.2f} | {peak:.0f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of a small model")
    parser.add_argument("contender", nargs="?", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3, help="how often each contender runs")
    chosen = parser.parse_args()
    if chosen.contender:
        contend(chosen.contender, chosen.folder)
    else:
        main(chosen.folder, chosen.rounds)
