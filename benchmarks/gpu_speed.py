"""Tokens a second, HFU and peak memory of a QLoRA step on a card, beside other programs; and the longest row per cap.

    python benchmarks/gpu_speed.py [--models NAME ...] [--tokens N ...] [--caps GIB ...] [--seconds S]

**It has never run on a card**; a test rehearses it on a processor with tiny shapes (`--rehearse`).

One process a measurement, a Markdown line as soon as it is there, and none is begun that cannot end within `--seconds`.
Models are drawn on the card: no network, no file. Contenders are this engine as planned without checkpointing and with it
on every layer, plain PEFT, PEFT with Liger's kernels, TRL's trainer and Unsloth; the last three only where installed.
HFU is the arithmetic that was done, recomputation included, as a share of what a large product reaches on this card.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_models import CONSUMER, draw_base, run_alone

WARM, TIMED, RANK = 3, 8, 16
NEEDS = {"peft + liger": "liger_kernel", "trl": "trl", "unsloth": "unsloth"}
"""Which package a contender needs; one that is missing is said."""
CONTENDERS = ("studio", "studio, checkpointed", "peft", "peft, checkpointed", "peft + liger", "trl", "unsloth")
SHORTEST = 256


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["Llama-3.2-1B", "Llama-3.1-8B"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[2048, 4096])
    parser.add_argument("--caps", nargs="*", type=int, default=[8, 12, 16, 24], help="GiB for the longest rows")
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--seconds", type=float, default=560)
    parser.add_argument(
        "--rehearse", action="store_true", help="tiny shapes on the processor; no figure means anything"
    )
    parser.add_argument("--one", nargs=4, metavar=("KIND", "CONTENDER", "MODEL", "NUMBER"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        kind, contender, model, number = chosen.one
        work = {"speed": measure_speed, "longest": find_longest}[kind]
        print(json.dumps(work(contender, model, int(number), rehearse=chosen.rehearse)))
        return 0
    if not chosen.rehearse and not _has_card():
        print("This computer has no CUDA card: the benchmark has not been run.")
        return 2
    end = time.monotonic() + chosen.seconds
    print("| model | tokens | contender | tokens/s | slowest | HFU | card busy | allocated MiB | reserved MiB |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    runs = [("speed", who, name, n) for name in chosen.models for n in chosen.tokens for who in chosen.contenders]
    runs += [("longest", "studio", name, cap) for name in chosen.models for cap in chosen.caps]
    longest = 5.0 if chosen.rehearse else 45.0
    for kind, who, name, number in runs:
        what = f"| {name} | {number if kind == 'speed' else f'longest row in {number} GB'} | {who} | "
        missing = NEEDS.get(who)
        if missing and importlib.util.find_spec(missing) is None:
            print(f"{what}{missing} is not installed |" + " |" * 5, flush=True)
            continue
        if time.monotonic() + longest > end:
            print(f"{what}no time left |" + " |" * 5, flush=True)
            continue
        begun = time.monotonic()
        arguments = ["--one", kind, who, name, str(number), *(["--rehearse"] if chosen.rehearse else [])]
        said, problem = run_alone(__file__, arguments, end - begun)
        longest = max(longest, time.monotonic() - begun)
        print(what + (problem + " |" + " |" * 5 if problem else _cells(json.loads(said))), flush=True)
    return 0


def _has_card() -> bool:
    """Asked of the driver: torch would open a context on the card that is measured."""
    from qlora_studio.planner.gpu import read_gpus

    return bool(read_gpus())


def _cells(found: dict[str, float]) -> str:
    if "longest" in found:
        return f"{found['longest']:.0f} tokens (planned {found['planned']:.0f}) |" + " |" * 5
    return (
        f"{found['rate']:.0f} | {found['slowest']:.0f} | {found['hfu']:.0%} | {found['busy']:.0%} | "
        f"{found['allocated'] / 2**20:.0f} | {found['reserved'] / 2**20:.0f} |"
    )


def shape_of(model: str, rehearse: bool) -> Any:
    from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES

    shape = REFERENCE_SHAPES[model]
    tiny = {"layers": 2, "vocab": 512, "hidden": 128, "intermediate": 256, "heads": 4, "kv_heads": 2, "head_dim": 32}
    return shape.model_copy(update=tiny) if rehearse else shape


def make_step(contender: str, shape: Any, tokens: int) -> tuple[Callable[[], None], int]:
    """One optimizer step of a contender over so many tokens, and on how many layers it computes twice."""
    import torch

    from qlora_studio.core.config import LoraSettings, TrainConfig
    from qlora_studio.engine.forward import LossFunction
    from qlora_studio.engine.kernels.checkpointing import checkpoint_layers
    from qlora_studio.engine.load import attach_adapter
    from qlora_studio.engine.updates import make_optimizer

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    base = draw_base(shape, device, torch.bfloat16)
    ids = torch.randint(0, shape.vocab, (1, tokens), device=device)
    if contender in ("trl", "unsloth"):
        return _trainer_step(contender, base, ids), shape.layers
    if contender == "peft + liger":
        from liger_kernel.transformers import _apply_liger_kernel_to_instance

        _apply_liger_kernel_to_instance(
            model=base, rope=True, swiglu=True, rms_norm=True, cross_entropy=False, fused_linear_cross_entropy=False
        )
    twice = shape.layers if "checkpointed" in contender or "liger" in contender else 0
    if contender.startswith("studio"):
        network: Any = attach_adapter(base, LoraSettings(rank=RANK), torch.float32, 0).train()
    else:
        network = _plain_adapter(base)
    loss_of = LossFunction(network, pack=False)  # the chunked loss for all: TRL has one too
    checkpoint_layers(network, twice)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(parameters, TrainConfig().replace({"optim.learning_rate": 2e-4}), "adamw_8bit")
    from qlora_studio.engine.batches import MicroBatch
    from qlora_studio.engine.kernels.loss import find_targets

    row = [ids[0].tolist()]
    batch = MicroBatch((0,), ids, ((0, tokens),), find_targets(row, [0]).sent(lambda tensor: tensor.to(device)))

    def step() -> None:
        (loss_of.row_losses(batch).sum() / tokens).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, twice


def _plain_adapter(base: Any) -> Any:
    """PEFT's own layers, as `get_peft_model` leaves them, adapters in the compute format."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(base, lora, autocast_adapter_dtype=False).train()


def _trainer_step(contender: str, base: Any, ids: Any) -> Callable[[], None]:
    """A training step of TRL's trainer on the same model; with Unsloth its patches are imported first."""
    import tempfile

    if contender == "unsloth":
        import unsloth  # noqa: F401  patches transformers and TRL when it is imported
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")), pad_token="a", eos_token="a"
    )
    rows = Dataset.from_list([{"input_ids": ids[0].tolist(), "labels": ids[0].tolist()}])
    arguments = SFTConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=1, max_length=None, optim="adamw_8bit",
        bf16=True, report_to=[], dataset_kwargs={"skip_prepare_dataset": True}, disable_tqdm=True,
        use_cpu=ids.device.type == "cpu", save_strategy="no",
    )  # fmt: skip
    trainer = SFTTrainer(model=_plain_adapter(base), args=arguments, train_dataset=rows, processing_class=tokenizer)
    trainer.create_optimizer()
    batch = {"input_ids": ids, "labels": ids, "attention_mask": ids.new_ones(ids.shape)}

    def step() -> None:
        trainer.training_step(trainer.model, dict(batch), 1)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)

    return step


def measure_speed(contender: str, model: str, tokens: int, *, rehearse: bool) -> dict[str, float]:
    """The median rate of some steps, HFU, the card's busy share and the most memory."""
    import torch

    from qlora_studio.planner.time import flops_per_token

    shape = shape_of(model, rehearse)
    tokens = 128 if rehearse else tokens
    step, twice = make_step(contender, shape, tokens)
    cuda = torch.cuda.is_available()
    wait = torch.cuda.synchronize if cuda else lambda: None
    for _ in range(1 if rehearse else WARM):
        step()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(2 if rehearse else TIMED):
        wait()
        begun = time.perf_counter()
        step()
        wait()
        times.append(time.perf_counter() - begun)
    median = sorted(times)[len(times) // 2]
    return {
        "rate": tokens / median,
        "slowest": tokens / max(times),
        "hfu": flops_per_token(shape, twice, tokens / 2) * tokens / median / measured_peak(rehearse),
        "busy": busy_seconds(step) / median,
        "allocated": torch.cuda.max_memory_allocated() if cuda else 0,
        "reserved": torch.cuda.max_memory_reserved() if cuda else 0,
    }


def busy_seconds(step: Callable[[], None]) -> float:
    """Time in which the card computed during one step; 0 on a processor."""
    import torch

    with torch.profiler.profile() as seen:
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    kernels = [event for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return float(sum(event.time_range.elapsed_us() for event in kernels)) / 1e6


def measured_peak(rehearse: bool) -> float:
    """Arithmetic a second of a large product on this device in bf16."""
    import torch

    cuda, size = torch.cuda.is_available(), 256 if rehearse else 8192
    wait = torch.cuda.synchronize if cuda else lambda: None
    a = torch.randn(size, size, device="cuda" if cuda else "cpu", dtype=torch.bfloat16)
    a @ a
    wait()
    begun = time.perf_counter()
    for _ in range(10):
        a @ a
    wait()
    return 10 * 2 * size**3 / (time.perf_counter() - begun)


def find_longest(contender: str, model: str, cap: int, *, rehearse: bool) -> dict[str, float]:
    """The longest row that really trains under a cap, found around what the plan says; every layer checkpointed."""
    import torch

    from qlora_studio.core.config import TrainConfig
    from qlora_studio.engine.accelerator.choose import choose_accelerator
    from qlora_studio.engine.planned import tensor_budget_bytes
    from qlora_studio.planner.fit import make_plan
    from qlora_studio.planner.tables import imagine_machine

    shape = shape_of(model, rehearse)
    plan = make_plan(TrainConfig().replace({"memory.offload": "none"}), shape, imagine_machine(cap))
    planned = 256 if rehearse else plan.longest_context or 0
    accelerator = choose_accelerator()
    accelerator.cap(tensor_budget_bytes(plan))
    low, high = 0, 2 * planned
    while high - low > max(SHORTEST, planned // 16):
        middle = (low + high) // 2
        try:
            step, _ = make_step(f"{contender}, checkpointed", shape, middle)
            step()
            low = middle
        except torch.OutOfMemoryError:
            high = middle
        accelerator.release()
    return {"longest": low, "planned": planned}


if __name__ == "__main__":
    os.environ.update({name: value for name, value in CONSUMER.items() if name not in os.environ})
    sys.exit(main())
