"""The plan against a card: predicted and measured under 8, 12, 16 and 24 GB, and a run forced out of memory.

    python benchmarks/gpu_memory.py [--models NAME ...] [--caps GIB ...] [--seconds S]

**It has never run on a card**; a test rehearses it on a processor.

For each model (random weights of the real shape, drawn on the card) and each cap: plans for a
card of that size, caps the allocator at the plan's budget, takes two whole optimizer steps of the planned micro-batch and
compares the bill with the allocator's peak and with what the driver says the process holds. Then, for each model, a
training whose plan is far too large for the memory it is left with: it has to finish with every step and the same losses
as the run that had room. Each measurement is a process of its own, and none is begun that cannot end within `--seconds`.
Offloading and tiles are those of the plan. Prints Markdown tables; exit code 2 without a card.

`--rehearse` runs the same code on the processor with the small model. Nothing is capped there, so the second run has
room as well, and no figure of it says anything about a card.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_models import CONSUMER, draw_base, run_alone

os.environ.update({name: value for name, value in CONSUMER.items() if name not in os.environ})

import torch

from qlora_studio.core import events as ev
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.example import Example
from qlora_studio.core.plan import MIB, MemoryPlan
from qlora_studio.engine import load
from qlora_studio.engine.accelerator.choose import choose_accelerator
from qlora_studio.engine.accelerator.formats import DTYPES
from qlora_studio.engine.forward import LossFunction
from qlora_studio.engine.kernels.checkpointing import checkpoint_layers
from qlora_studio.engine.kernels.replace import tile_mlps
from qlora_studio.engine.loop import train
from qlora_studio.engine.planned import tensor_budget_bytes
from qlora_studio.engine.setup import Setup
from qlora_studio.engine.updates import make_optimizer
from qlora_studio.planner.estimate import estimate
from qlora_studio.planner.fit import make_plan
from qlora_studio.planner.gpu import read_gpus
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES
from qlora_studio.planner.tables import imagine_machine

MODELS = ("Qwen3-1.7B", "Qwen3-4B", "Llama-3.1-8B")
CAPS_GIB = (8, 12, 16, 24)
ROW = 1024
STEPS = 4
ROOM = 0.5
"""Share of what the planned step needs beyond weights and adapter that the forced run is left with."""
LEAST_SECONDS = 30
"""No measurement begins with less time than this."""
LOSS_TOLERANCE = 2e-3
"""Largest relative difference of a loss in bf16 when the same rows are cut into other micro-batches."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(REFERENCE_SHAPES))
    parser.add_argument("--caps", nargs="+", type=int, default=list(CAPS_GIB), help="card sizes in GiB")
    parser.add_argument("--seconds", type=float, default=560, help="no measurement begins that cannot end within them")
    parser.add_argument("--rehearse", action="store_true", help="run on the processor with the small model")
    parser.add_argument("--one", nargs=3, metavar=("KIND", "MODEL", "CAP"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        kind, model, cap = arguments.one
        work = {"plan": measure_plan, "roomy": run_with_room, "forced": run_without_room}[kind]
        print(json.dumps(work(model, int(cap))))
        return 0
    if arguments.rehearse:
        arguments.models, arguments.caps = ["SmolLM2-135M"], [6]
    elif not (cards := read_gpus()):  # asked of the driver: torch would open a context on the measured card
        print("This computer has no CUDA card: the benchmark has not been run.")
        return 2
    where = "processor (rehearsal)" if arguments.rehearse else cards[0].name
    print(f"{datetime.date.today()}, {where}, torch {torch.__version__}, rank 16, rows of {ROW} tokens\n")
    until = time.monotonic() + arguments.seconds
    print_plans(arguments.models, arguments.caps, until)
    print_forced(arguments.models, min(arguments.caps), until)
    return 0


def print_plans(models: list[str], caps: list[int], until: float) -> None:
    print(
        "| model | card GB | micro-batch tokens | checkpointed layers | predicted MiB | allocated | error | reserved | driver |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for model in models:
        for cap in caps:
            found = in_process("plan", model, cap, until)
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


def print_forced(models: list[str], cap: int, until: float) -> None:
    print("\nForced out of memory: the same run with room and without.\n")
    print("| model | steps | retried smaller | first change | largest relative difference of a loss | finished alike |")
    print("|---|---|---|---|---|---|")
    for model in models:
        roomy, forced = (in_process(kind, model, cap, until) for kind in ("roomy", "forced"))
        if "says" in roomy or "says" in forced:
            print(f"| {model} | {roomy.get('says') or forced['says']} | | | | |", flush=True)
            continue
        pairs = zip(roomy["losses"], forced["losses"], strict=False)
        difference = max(abs(one - other) / one for one, other in pairs)
        alike = len(roomy["losses"]) == len(forced["losses"]) and difference < LOSS_TOLERANCE
        changes = forced["changes"] or ["none: it had room"]
        print(
            f"| {model} | {len(forced['losses'])} of {len(roomy['losses'])} | {len(forced['changes'])} | {changes[0]} | "
            f"{difference:.1e} | {'yes' if alike and forced['changes'] else 'no'} |",
            flush=True,
        )


def in_process(kind: str, model: str, cap: int, until: float) -> dict[str, Any]:
    """One measurement in a process of its own; `says` where it failed or could not end in time."""
    left = until - time.monotonic()
    if left < LEAST_SECONDS:
        return {"says": "no time left"}
    said, problem = run_alone(__file__, ["--one", kind, model, str(cap)], left)
    if problem:
        return {"says": problem}
    found = json.loads(said)
    assert isinstance(found, dict)
    return found


def plan_for(model: str, cap: int, **changes: Any) -> tuple[TrainConfig, MemoryPlan]:
    """The plan for a card of this size; on the processor for the same amount of memory."""
    values = {
        "data.max_length": ROW,
        "evaluation.before": False,
        "memory.budget_gib": None,
        "optim.learning_rate": 2e-4,
    }
    values |= changes
    if not torch.cuda.is_available():
        values |= {"memory.budget_gib": float(cap), "data.max_length": 256}
    config = TrainConfig().replace(values)
    machine = imagine_machine(cap)
    if not torch.cuda.is_available():
        machine = machine.model_copy(update={"cards": ()})
    return config, make_plan(config, REFERENCE_SHAPES[model], machine)


def load_for(model: str, plan: MemoryPlan) -> Any:
    """The model as the plan wants it: drawn, offloaded, tiled, checkpointed."""
    device = load.choose_device(plan.settings.compute if plan.settings else "auto")
    base = draw_base(REFERENCE_SHAPES[model], device.torch, device.dtype)
    if plan.offload in ("embeddings", "both") and device.type != "cpu":
        embeddings = base.get_input_embeddings()
        embeddings.weight = torch.nn.Parameter(embeddings.weight.cpu(), requires_grad=False)
        load.look_tokens_up_on_host(base, device.torch)
    network = load.attach_adapter(base, TrainConfig().lora, DTYPES[plan.adapter_precision], seed=0)
    tile_mlps(network, plan.tiled_mlp)
    return network


def measure_plan(model: str, cap: int) -> dict[str, Any]:
    """Two optimizer steps as planned under the cap, and what they took."""
    config, plan = plan_for(model, cap)
    if not plan.fits:
        return {"says": f"does not fit: {plan.changes[0]}"}
    accelerator = choose_accelerator()
    accelerator.prepare()
    accelerator.cap(tensor_budget_bytes(plan))
    network = load_for(model, plan).train()
    loss_function = LossFunction(network)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(parameters, config, plan.optimizer)
    offload = plan.offload in ("boundaries", "both")
    checkpoint_layers(network, plan.checkpointed_layers, offload=offload, pin=accelerator.pins_memory)
    row = config.data.max_length
    rows = plan.micro_batch_tokens // row
    ids = torch.arange(rows * row, device=loss_function.head.device).remainder(30_000).view(rows, row)
    accelerator.reset_peak()
    for _ in range(2):
        (loss_function(ids, ids) / ids.numel()).backward()
        (loss_function(ids, ids) / ids.numel()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    held = [process.used_bytes for card in read_gpus() for process in card.processes if process.pid == os.getpid()]
    cuda = torch.cuda.is_available()
    settings = plan.settings
    assert settings is not None
    done = settings.model_copy(update={"micro_batch_tokens": ids.numel(), "trained_tokens": rows * (row - 1)})
    bill = estimate(REFERENCE_SHAPES[model], done)
    return {
        "tokens": ids.numel(),
        "checkpointed": plan.checkpointed_layers,
        "predicted": bill.allocator_bytes if cuda else bill.total_bytes,
        "allocated": accelerator.peak().allocated_bytes,
        "reserved": accelerator.peak().reserved_bytes if cuda else 0,
        "driver": (held[0] or 0) if held else 0,
    }


def run_with_room(model: str, cap: int) -> dict[str, Any]:
    """A short training with all the memory there is."""
    return run_training(model, cap, forced=False)


def run_without_room(model: str, cap: int) -> dict[str, Any]:
    """The same training with room for half of its planned step."""
    return run_training(model, cap, forced=True)


def run_training(model: str, cap: int, *, forced: bool) -> dict[str, Any]:
    row = ROW if torch.cuda.is_available() else 256
    config, plan = plan_for(
        model,
        cap,
        **{
            "optim.max_steps": STEPS,
            "optim.batch_tokens": 4 * row,
            "memory.micro_batch_tokens": 4 * row,
            "memory.gradient_checkpointing": "none",
        },
    )
    accelerator = choose_accelerator()
    network = load_for(model, plan)
    settings = plan.settings
    assert settings is not None
    if forced and torch.cuda.is_available():
        moving = sum(plan.estimate.part_bytes(key) for key in ("activations", "loss", "workspace"))
        static = plan.estimate.part_bytes("gradients") + plan.estimate.part_bytes("optimizer")
        accelerator.cap(torch.cuda.memory_reserved() + static + round(ROOM * moving))
    lengths = [row - 37 * (index % 5) for index in range(4 * STEPS)]
    ids = torch.randint(0, 30_000, (row,), generator=torch.Generator().manual_seed(0)).tolist()
    examples = [Example(tuple(ids[-length:]), ((length // 4, length),)) for length in lengths]
    events: list[ev.Event] = []
    with tempfile.TemporaryDirectory() as run:
        train(Setup(config, plan, accelerator, network, examples, [], Path(run), model), events.append, lambda: "")
    return {
        "losses": [event.loss for event in events if isinstance(event, ev.StepLogged)],
        "changes": [event.change for event in events if isinstance(event, ev.StepRetriedSmaller)],
    }


if __name__ == "__main__":
    sys.exit(main())
