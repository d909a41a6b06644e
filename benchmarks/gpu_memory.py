"""The plan against a card: predicted and measured under 8, 12, 16 and 24 GB, and a run forced out of memory.

    python benchmarks/gpu_memory.py [--models NAME ...] [--caps GIB ...] [--seconds S]

**It has never run on a card**; a test rehearses it on a processor.

For each model (random weights of the real shape, drawn on the card) and each cap: plans for a card of that size, caps the
allocator at the plan's budget, takes two whole optimizer steps of the planned micro-batch and compares the bill with the
allocator's peak and with what the driver says the process holds. Then a training whose plan is far too large for the
memory it is left with (`gpu_forced.py`): it has to finish with every step, and what it does otherwise than a run with room
may be rounding only. Each measurement is a process of its own, and `--seconds` are shared out among them. Offloading and
tiles are those of the plan. Prints Markdown tables; exit code 2 without a card.

`--rehearse` runs the same code on the processor, with tiny shapes of the same families and every cap. Nothing is capped
there, so running out of memory is pretended, and no figure says anything about a card.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_forced import KINDS, measure_forced, print_forced
from benchmarks.gpu_models import network_for, plan_for, shape_of
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

MODELS = ("Qwen3-1.7B", "Qwen3-4B", "Llama-3.1-8B")
CAPS_GIB = (8, 12, 16, 24)
ROW = {True: 256, False: 1024}
MIB = 1 << 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", help=f"default {MODELS[-1]}, in a rehearsal {', '.join(MODELS)}")
    parser.add_argument("--caps", nargs="+", type=int, default=list(CAPS_GIB), help="card sizes in GiB")
    parser.add_argument("--seconds", type=float, help="that the command may take; default 560, a rehearsal an hour")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes on the processor, figures mean nothing")
    parser.add_argument("--one", nargs=4, metavar=("KIND", "MODEL", "CAP", "CHANGES"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        kind, model, cap, changes = chosen.one
        check_card(chosen.rehearse)
        if kind == "machine":
            report(try_machine())
        elif kind == "plan":
            report(measure_plan(model, int(cap), rehearse=chosen.rehearse))
        else:
            report(measure_forced(kind, model, changes, rehearse=chosen.rehearse))
        return 0
    left = begin(__file__, ["--one", "machine", "", "", ""], chosen.seconds, rehearse=chosen.rehearse)
    if left is None:
        return 2
    models = chosen.models or (MODELS if chosen.rehearse else MODELS[-1:])
    weights = [1.0] * (len(models) * (len(chosen.caps) + len(KINDS)))
    budget = TimeBudget(left, weights, LEAST_SECONDS[chosen.rehearse])

    def measure(kind: str, model: str, cap: int = 0, changes: str = "") -> dict[str, Any]:
        arguments = ["--one", kind, model, str(cap), changes]
        found = list(measure_alone(__file__, arguments, budget.share(), rehearse=chosen.rehearse))
        return found[0] if found else {"says": "it said nothing"}

    print_plans(models, chosen.caps, measure)
    print_forced(models, measure)
    return 0


def print_plans(models: Sequence[str], caps: Sequence[int], measure: Any) -> None:
    """A line for each model and cap: what was planned and what was measured, or why not."""
    print(
        "| model | card GB | micro-batch tokens | checkpointed layers | predicted MiB | allocated | error | reserved | driver |"
    )
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for model in models:
        for cap in caps:
            found = measure("plan", model, cap)
            if "says" in found:
                print(f"| {model} | {cap} | {found['says']} | | | | | | |", flush=True)
                continue
            predicted, allocated = found["predicted"], found["allocated"]
            driver = f"{found['driver'] / MIB:.0f}" if found["driver"] else "not told"
            print(
                f"| {model} | {cap} | {found['tokens']} | {found['checkpointed']} | {predicted / MIB:.0f} | "
                f"{allocated / MIB:.0f} | {predicted / allocated - 1:+.1%} | {found['reserved'] / MIB:.0f} | "
                f"{driver} |",
                flush=True,
            )


def measure_plan(model: str, cap: int, *, rehearse: bool) -> dict[str, Any]:
    """Two optimizer steps as planned under the cap, and what they took."""
    import torch

    from qlora_studio.core.example import Example
    from qlora_studio.engine.accelerator.choose import choose_accelerator
    from qlora_studio.engine.forward import LossFunction
    from qlora_studio.engine.kernels.checkpointing import checkpoint_layers
    from qlora_studio.engine.kernels.offloading import Offloading
    from qlora_studio.engine.planned import tensor_budget_bytes
    from qlora_studio.engine.updates import make_optimizer, trained_groups
    from qlora_studio.planner.estimate import estimate
    from qlora_studio.planner.gpu import read_gpus

    shape = shape_of(model, rehearse)
    config, plan = plan_for(shape, cap, rehearse=rehearse, **{"data.max_length": ROW[rehearse]})
    if not plan.fits:
        return {"says": f"does not fit: {plan.changes[0]}"}
    accelerator = choose_accelerator()
    accelerator.prepare()
    accelerator.cap(tensor_budget_bytes(plan))
    network = network_for(shape, plan, config.lora)
    loss_of = LossFunction(network)
    optimizer = make_optimizer(trained_groups(network, config.optim), config, plan.optimizer)
    offloading = Offloading(accelerator) if plan.offload in ("boundaries", "both") else None
    checkpoint_layers(network, plan.checkpointed_layers, offloading)
    row = config.data.max_length
    rows = max(1, plan.micro_batch_tokens // row)
    ids = tuple(place % shape.vocab for place in range(row))
    batch = loss_of.layout.collate([Example(ids, ((0, row),))] * rows, range(rows))
    accelerator.release()  # what drawing and quantising left in the allocator is not the step's
    accelerator.reset_peak()
    for _ in range(2):
        for _ in range(2):
            (loss_of.row_losses(batch).sum() / batch.ids.numel()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    accelerator.synchronise()
    held = [process.used_bytes for card in read_gpus() for process in card.processes if process.pid == os.getpid()]
    assert plan.settings is not None
    done = plan.settings.model_copy(
        update={"micro_batch_tokens": batch.ids.numel(), "trained_tokens": rows * (row - 1)}
    )
    bill, cuda = estimate(shape, done), torch.cuda.is_available()
    return {
        "tokens": batch.ids.numel(),
        "checkpointed": plan.checkpointed_layers,
        "predicted": bill.allocator_bytes if cuda else bill.total_bytes,
        "allocated": accelerator.peak().allocated_bytes,
        "reserved": accelerator.peak().reserved_bytes if cuda else 0,
        "driver": (held[0] or 0) if held else 0,
    }


if __name__ == "__main__":
    os.environ.update({name: value for name, value in CONSUMER.items() if name not in os.environ})
    sys.exit(main())
