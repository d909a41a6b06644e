"""Tokens a second, HFU and peak memory of a QLoRA step on a card, beside other programs; and the longest row per cap.

    python benchmarks/gpu_speed.py [--models NAME ...] [--tokens N ...] [--caps GIB ...] [--seconds S]

**It has never run on a card**; a test rehearses it on a processor with tiny shapes (`--rehearse`: every model, every
contender, every cap).

One process a contender, a Markdown line as soon as its figures are there, and what belongs to one model fits one command
of ten minutes: `--seconds` are shared out among the processes, our own and the peers people use first, so that none
takes what the others need; what there was no time for is said. Models are drawn on the card: no network, and no file but
for Unsloth, which loads from one. Contenders are this engine without checkpointing, with it on every layer and without Triton's
kernels, plain PEFT, PEFT with Liger's kernels, TRL's trainer and Unsloth; the last three only where installed. HFU is the
arithmetic that was done, recomputation included, as a share of what a large product reaches on this card. The longest row
is searched around the planned one, with rank 32 as in the table that Unsloth publishes; computer memory is used as planned.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_longest import find_longest
from benchmarks.gpu_models import shape_of, write_base
from benchmarks.gpu_processes import (
    CONSUMER,
    LEAST_SECONDS,
    TimeBudget,
    begin,
    check_card,
    measure_alone,
    report,
    try_machine,
)
from benchmarks.gpu_steps import CONTENDERS, NEEDS, Stopwatch, layers_again, take_steps

MODELS = ("Llama-3.2-1B", "Qwen3-4B", "Llama-3.1-8B")
TOKENS, CAPS_GIB = (2048, 4096), (8, 12, 16, 24)
LONGEST = "longest rows"
LONGEST_BEFORE = "peft, checkpointed"
"""The first contender that waits until the longest rows are found."""
LONGEST_WEIGHT = 4
"""The longest rows may want so many times the time of a contender."""
REHEARSED_TOKENS = 16
"""A rehearsal's rows are so many times shorter."""
EMPTY = " |" * 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", help=f"default {MODELS[-1]}, in a rehearsal {', '.join(MODELS)}")
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument("--caps", nargs="*", type=int, default=list(CAPS_GIB), help="GiB for the longest rows")
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--seconds", type=float, help="that the command may take; default 560, a rehearsal an hour")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes on the processor, figures mean nothing")
    parser.add_argument("--one", nargs=3, metavar=("KIND", "MODEL", "FOLDER"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        kind, model, folder = chosen.one
        if kind == "unsloth":
            import unsloth  # noqa: F401  it patches what is imported after it
        check_card(chosen.rehearse)
        measure(kind, model, folder, chosen)
        return 0
    left = begin(__file__, ["--one", "machine", "", ""], chosen.seconds, rehearse=chosen.rehearse)
    if left is None:
        return 2
    print("| model | tokens | contender | tokens/s | slowest | HFU | card busy | allocated MiB | reserved MiB |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    compare(chosen.models or (MODELS if chosen.rehearse else MODELS[-1:]), chosen, left)
    return 0


def compare(models: Sequence[str], chosen: argparse.Namespace, seconds: float) -> None:
    """All measurements of these models, within the seconds that are left."""
    kinds = list(chosen.contenders)
    if chosen.caps:
        behind = CONTENDERS[CONTENDERS.index(LONGEST_BEFORE) :]
        kinds.insert(next((place for place, kind in enumerate(kinds) if kind in behind), len(kinds)), LONGEST)
    runs = [(model, kind) for model in models for kind in kinds]
    there = [run for run in runs if not missing(run[1])]
    weights = [LONGEST_WEIGHT if kind == LONGEST else 1 for _, kind in there]
    time_left = TimeBudget(seconds, weights, LEAST_SECONDS[chosen.rehearse])
    for model, kind in runs:
        if absent := missing(kind):
            for tokens in chosen.tokens:
                print(f"| {model} | {tokens} | {kind} | {absent} is not installed |{EMPTY}", flush=True)
        elif kind == LONGEST:
            print_longest(model, chosen, time_left.share())
        else:
            print_speed(model, kind, chosen, time_left.share())


def missing(kind: str) -> str:
    """The first package that a contender needs and this machine lacks; empty where it can run."""
    return next((name for name in NEEDS.get(kind, ()) if importlib.util.find_spec(name) is None), "")


def in_process(kind: str, model: str, chosen: argparse.Namespace, seconds: float | None) -> Any:
    """The findings of one contender for one model; one that loads from a folder has it written first."""
    more = ["--tokens", *map(str, chosen.tokens), "--caps", *map(str, chosen.caps)]
    if kind != "unsloth" or seconds is None:
        yield from measure_alone(__file__, ["--one", kind, model, "", *more], seconds, rehearse=chosen.rehearse)
        return
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for found in measure_alone(
            __file__, ["--one", "write", model, folder, *more], seconds, rehearse=chosen.rehearse
        ):
            yield found
            return
        left = max(1.0, seconds - (time.monotonic() - begun))
        yield from measure_alone(__file__, ["--one", kind, model, folder, *more], left, rehearse=chosen.rehearse)


def print_speed(model: str, kind: str, chosen: argparse.Namespace, seconds: float | None) -> None:
    """A line for each length of a row: its figures, or why there are none."""
    waiting, reason = list(chosen.tokens), "nothing was found"
    for found in in_process(kind, model, chosen, seconds):
        if "says" in found:
            reason = found["says"]
            continue
        waiting.remove(found["wanted"])
        busy = f"{found['busy']:.0%}" if found["busy"] else "not told"
        print(
            f"| {model} | {found['wanted']} | {kind} | {found['tokens'] / found['seconds']:.0f} | "
            f"{found['tokens'] / found['slowest']:.0f} | {found['hfu']:.0%} | {busy} | "
            f"{found['allocated'] / 2**20:.0f} | {found['reserved'] / 2**20:.0f} |",
            flush=True,
        )
    for tokens in waiting:
        print(f"| {model} | {tokens} | {kind} | {reason} |{EMPTY}", flush=True)


def print_longest(model: str, chosen: argparse.Namespace, seconds: float | None) -> None:
    """A line for each cap: the longest row that trained, or how far the search came."""
    best: dict[int, str] = {}
    waiting, reason = list(chosen.caps), "nothing was found"

    def fill_cell(cap: int, cell: str) -> None:
        print(f"| {model} | longest row in {cap} GB | studio, as planned | {cell} |{EMPTY}", flush=True)

    for found in in_process(LONGEST, model, chosen, seconds):
        if "says" in found:
            reason = found["says"]
        elif "problem" in found:
            waiting.remove(found["cap"])
            fill_cell(found["cap"], found["problem"])
        elif found["final"]:
            waiting.remove(found["cap"])
            fill_cell(found["cap"], f"{found['longest']} tokens (planned {found['planned']})")
        elif found["longest"]:
            best[found["cap"]] = f"at least {found['longest']} tokens (planned {found['planned']}); "
    for cap in waiting:
        fill_cell(cap, best.get(cap, "") + reason)


def measure(kind: str, model: str, folder: str, chosen: argparse.Namespace) -> None:
    """What one process does; it tells its findings as it goes."""
    if kind == "machine":
        report(try_machine())
        return
    shape = shape_of(model, chosen.rehearse)
    if kind == "write":
        import torch

        write_base(shape, torch.device("cuda" if torch.cuda.is_available() else "cpu"), Path(folder))
    elif kind == LONGEST:
        for cap in chosen.caps:
            find_longest(shape, cap, rehearse=chosen.rehearse)
    else:
        measure_speed(kind, shape, folder, chosen)


def measure_speed(contender: str, shape: Any, folder: str, chosen: argparse.Namespace) -> None:
    """Reports the median rate of some steps, HFU, the card's busy share and the most memory, for each length of a row."""
    from qlora_studio.planner.time import flops_per_token

    peak = measured_peak(chosen.rehearse)
    wanted = sorted(chosen.tokens)
    lengths = [tokens // REHEARSED_TOKENS if chosen.rehearse else tokens for tokens in wanted]
    again = layers_again(contender, shape.layers)

    def report_length(found: dict[str, Any]) -> None:
        done = flops_per_token(shape, again, found["tokens"]) * found["tokens"] / found["seconds"]
        report({**found, "wanted": wanted[lengths.index(found["tokens"])], "hfu": done / peak})

    take_steps(contender, shape, Stopwatch(lengths, report_length, rehearse=chosen.rehearse), folder)


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


if __name__ == "__main__":
    os.environ.update({name: value for name, value in CONSUMER.items() if name not in os.environ})
    sys.exit(main())
