"""Answers of the NF4 model with its adapter, on one processor thread: `python benchmarks/chat_cpu.py MODEL_FOLDER`.

The same prompt and the same number of new tokens, greedily, each contender in a process of its own, in turns. Reported:
processor seconds to the first token and tokens per processor second after it. `dequantised` keeps the merged weights in
bf16: what an answer costs where memory allows that copy.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONTENDERS = (
    "studio",
    "studio, torch's attention",
    "studio, nor repacking",
    "studio, dequantised",
    "transformers with PEFT",
    "transformers, static cache",
)
ROUNDS, PROMPT_TOKENS, NEW_TOKENS, RANK = 2, 256, 48, 16
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "GOMP_SPINCOUNT": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONPATH": str(ROOT),
}


def load(folder: Path, contender: str) -> Any:
    """The model as the contender has it; its adapter is not zero, so that no product is skipped."""
    import torch

    from qlora_studio.core.config import LoraSettings
    from qlora_studio.engine import load
    from qlora_studio.engine.accelerator.cpu import CpuAccelerator

    device = load.Device(CpuAccelerator(), torch.bfloat16)
    if contender.startswith("studio"):
        base = load.load_base(folder, device, four_bit=contender != "studio, dequantised")
        if contender == "studio, dequantised":
            load.prepare_answers(base.eval(), device)
            return base
        model = load.attach_adapter(base, LoraSettings(rank=RANK), torch.float32, 1).eval()
        if contender == "studio":
            load.prepare_answers(model, device)
        else:
            load.keep_layout(model, canonical="nor" in contender)
        return model
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    base = AutoModelForCausalLM.from_pretrained(folder, quantization_config=four_bit, dtype=torch.bfloat16)
    return get_peft_model(base, LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear")).eval()


def answer(model: Any, contender: str, prompt: list[int]) -> list[float]:
    """Processor seconds after each new token."""
    import torch

    from qlora_studio.core.chat import Sampling
    from qlora_studio.engine.generate import generate

    begun, marks = time.process_time(), []
    if contender.startswith("studio"):
        for _ in generate(model, prompt, (), Sampling(temperature=0.0, max_new_tokens=NEW_TOKENS)):
            marks.append(time.process_time() - begun)
        return marks
    from transformers.generation.streamers import BaseStreamer

    class Clock(BaseStreamer):
        def put(self, value: Any) -> None:
            marks.append(time.process_time() - begun)

        def end(self) -> None:
            pass

    cache = {"cache_implementation": "static"} if "static" in contender else {}
    with torch.inference_mode():
        model.generate(
            input_ids=torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False,
            streamer=Clock(), **cache,
        )  # fmt: skip
    return marks[1:]  # the prompt itself comes first


def measure(folder: Path, contender: str) -> None:
    model = load(folder, contender)
    prompt = [7 + number % 900 for number in range(PROMPT_TOKENS)]
    answer(model, contender, prompt[:16])  # warm-up
    marks = answer(model, contender, prompt)
    print(json.dumps({"first": marks[0], "rate": (len(marks) - 1) / (marks[-1] - marks[0])}))


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    if len(sys.argv) == 3:
        return measure(folder, sys.argv[2])
    results: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for _ in range(ROUNDS):
        for name in CONTENDERS:
            command = [sys.executable, __file__, str(folder), name]
            done = subprocess.run(
                command, capture_output=True, text=True, env={**os.environ, **ENVIRONMENT}, check=False
            )
            if done.returncode:
                raise SystemExit(done.stderr[-3000:])
            results[name].append(json.loads(done.stdout.strip().splitlines()[-1]))
    reference = statistics.mean(one["rate"] for one in results["transformers with PEFT"])
    print(f"prompt {PROMPT_TOKENS} tokens, {NEW_TOKENS} new, rank {RANK}, one thread, {ROUNDS} rounds")
    for name, runs in results.items():
        rate = statistics.mean(one["rate"] for one in runs)
        first = statistics.mean(one["first"] for one in runs)
        print(f"{name:28} first token {first:6.2f} CPU s   {rate:6.2f} tokens per CPU s   {rate / reference:5.2f}x")


if __name__ == "__main__":
    main()
