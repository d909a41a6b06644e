"""The plan's formulas against the allocator, on a CPU: models of real width with two layers and random weights.

    python benchmarks/memory_cpu.py [NAME ...]

Prints a Markdown table: predicted and measured peak of forward and backward in MiB, for three lengths, with no layer
and with gradient checkpointing on every layer. Takes about five minutes on two cores; docs/memory.md keeps the last result.
"""

from __future__ import annotations

import argparse
import datetime
import os
import tempfile
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("USE_HUB_KERNELS", "0")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch

from qlora_studio.core.config import LoraSettings
from qlora_studio.core.plan import MIB, ModelShape, PlanSettings
from qlora_studio.engine import load
from qlora_studio.engine.accelerator.cpu import CpuAccelerator
from qlora_studio.engine.allocations import peak_of
from qlora_studio.engine.copies import write_random_model
from qlora_studio.engine.forward import LossFunction
from qlora_studio.engine.kernels.checkpointing import checkpoint_layers
from qlora_studio.planner.activations import step_peak
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES

LAYERS, VOCAB, RANK = 2, 4096, 16
LENGTHS = (256, 512, 1024)
QWEN2 = ModelShape(
    name="Qwen2.5-1.5B", family="qwen2", hidden=1536, layers=28, heads=12, kv_heads=2, head_dim=128, intermediate=8960,
    vocab=151936, tied_embeddings=True, max_positions=32768, attention_bias=True,
)  # fmt: skip
NAMES = ("SmolLM2-135M", "Llama-3.2-1B", "Qwen2.5-1.5B", "Qwen3-4B", "Phi-4-mini", "Gemma-3-4B", "Mistral-7B-v0.3")


def two_layers(name: str) -> ModelShape:
    """The shape at its real width, with two layers and a small vocabulary so that the layers make the peak."""
    shape = QWEN2 if name == QWEN2.name else REFERENCE_SHAPES[name]
    local = min(LAYERS, shape.sliding_layers)
    return shape.model_copy(update={"layers": LAYERS, "vocab": VOCAB, "sliding_layers": local})


def measure(name: str) -> list[str]:
    """The model's lines of the table."""
    shape = two_layers(name)
    with tempfile.TemporaryDirectory() as folder:
        base = load.load_base(write_random_model(shape, Path(folder)), load.Device(CpuAccelerator(), torch.bfloat16))
    model = load.attach_adapter(base, LoraSettings(rank=RANK), torch.float32, seed=0).train()
    loss_function = LossFunction(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    lines = []
    for checkpointed in (0, LAYERS):
        checkpoint_layers(model, checkpointed)
        cells = []
        for tokens in LENGTHS:
            ids = torch.arange(tokens).remainder(VOCAB).unsqueeze(0)
            measured = peak_of(lambda ids=ids: (loss_function(ids, ids) / ids.numel()).backward())
            settings = PlanSettings(
                device="cpu",
                rank=RANK,
                micro_batch_tokens=tokens,
                trained_tokens=tokens - 1,
                checkpointed_layers=checkpointed,
            )
            predicted = step_peak(shape, settings).total
            cells.append(f"{predicted / MIB:.1f} / {measured / MIB:.1f} ({predicted / measured - 1:+.1%})")
        lines.append(f"| {name} | {checkpointed} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, help="models; all of them without a name")
    names = parser.parse_args().names
    CpuAccelerator().prepare()
    print(f"{datetime.date.today()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("predicted / measured MiB of forward and backward, bf16, rank 16, two layers at real width\n")
    print("| model | checkpointed layers | " + " | ".join(f"{tokens} tokens" for tokens in LENGTHS) + " |")
    print("|---|---|" + "---|" * len(LENGTHS))
    for name in names:
        for line in measure(name):
            print(line, flush=True)


if __name__ == "__main__":
    main()
