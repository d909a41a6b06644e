"""A run that is forced out of memory, beside the same run with room: is what differs rounding, or a fault?

Losses of the two alone cannot tell: in bf16 a step that is cut into other micro-batches is rounded otherwise. So what can
differ is taken apart.

- *The retry.* A third run has room and is cut, step by step, as the forced one ended up being cut. It computes the same
  operations and never failed, so the forced run has to have its losses and gradient norms: to the last bit where kernels
  are deterministic, as they are asked to be here.
- *The cut.* The gradient of one step, whole and as single checkpointed rows, in bf16 and in fp32. fp32 keeps 24 bits of
  a number and bf16 8, so rounding becomes 2^16 times smaller there, while a fault stays what it is.

In both the bound is a relative difference of `1 / (2 * tokens)` of the largest step: the least that a fault can be is one
token more or less, which changes a gradient by about its share of the step; rounding in fp32 is about 1e-6.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_models import SEED, draw_base, network_for, plan_for, shape_of

KINDS = ("roomy", "forced", "replayed", "cut")
"""The measurements that a line needs."""
ROWS, STEPS = 4, 4
ROW = {True: 256, False: 512}
"""Tokens of the longest row, in a rehearsal and else."""
ROOMY_GIB = {True: 8, False: 80}
"""The card that is planned for, large enough for whole steps without gradient checkpointing; a smaller one may do."""
ROOM = 0.5
"""Share of what the planned step needs beyond weights and adapter that the forced run is left with."""
PRETENDED = (1, 2, 15)
"""In a rehearsal, which of the micro-batches that are computed run out of memory: the probe's, and one in mid-step."""
CUT_ROW = 256
"""Tokens of the longest row of the step that is cut, few enough for a small card in fp32."""

Measure = Callable[..., dict[str, Any]]


def print_forced(models: Sequence[str], measure: Measure) -> None:
    """A line for each model, or why there is none."""
    print(
        "\nForced out of memory, largest relative differences: of the retry from a run that was cut so from the start;"
    )
    print("of the cut from a run with room in its losses, and from the gradient of the whole step.\n")
    print(
        "| model | steps | retried smaller | first change | retry: loss | gradient norm | cut: loss | gradient bf16 | fp32 | "
        "bound | finished alike |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for model in models:
        roomy, forced = measure("roomy", model), measure("forced", model)
        changes = json.dumps(forced.get("changes", []))
        replayed, cut = measure("replayed", model, changes=changes), measure("cut", model)
        reasons = [found["says"] for found in (roomy, forced, replayed, cut) if "says" in found]
        if reasons:
            print(f"| {model} | {reasons[0]} |" + " |" * 9, flush=True)
        else:
            print(f"| {model} | {' | '.join(judge(roomy, forced, replayed, cut))} |", flush=True)


def judge(roomy: Any, forced: Any, replayed: Any, cut: Any) -> list[str]:
    """The cells of a line behind the model's name."""
    whole = len(forced["losses"]) == len(roomy["losses"]) == len(replayed["losses"])
    retry, norms = (difference(forced[what], replayed[what]) for what in ("losses", "norms"))
    alike = whole and bool(forced["changes"]) and max(retry, norms, cut["fp32"]) < forced["bound"]
    return [
        f"{len(forced['losses'])} of {len(roomy['losses'])}",
        str(len(forced["changes"])),
        forced["changes"][0]["words"] if forced["changes"] else "none: it had room",
        *(f"{number:.1e}" for number in (retry, norms, difference(roomy["losses"], replayed["losses"]))),
        *(f"{number:.1e}" for number in (cut["bf16"], cut["fp32"], forced["bound"])),
        "yes" if alike else "no",
    ]


def difference(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest relative difference of two curves; more than any bound where one is empty or not of numbers."""
    found = [abs(a - b) / abs(b) for a, b in zip(one, other, strict=False)]
    return max(found) if found and all(map(math.isfinite, found)) else math.inf


def measure_forced(kind: str, model: str, changes: str, *, rehearse: bool) -> dict[str, Any]:
    """One of `KINDS`; `changes` are those of the forced run, for the one that replays its cuts."""
    if kind == "cut":
        return compare_cuts(shape_of(model, rehearse))
    return run_training(kind, shape_of(model, rehearse), json.loads(changes or "[]"), rehearse=rehearse)


def run_training(kind: str, shape: Any, changes: Sequence[dict[str, Any]], *, rehearse: bool) -> dict[str, Any]:
    """A short training: with all the memory there is, with half of what its planned step needs, or cut by `changes`."""
    import torch

    from qlora_studio.core import events as ev
    from qlora_studio.engine.accelerator.choose import choose_accelerator
    from qlora_studio.engine.loop import TrainingLoop
    from qlora_studio.engine.setup import Setup

    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    row, accelerator = ROW[rehearse], choose_accelerator()
    wishes = {
        "data.max_length": row,
        "optim.max_steps": STEPS,
        "optim.batch_tokens": ROWS * row,
        "memory.micro_batch_tokens": ROWS * row,
        "memory.gradient_checkpointing": "none",
    }
    config, plan = plan_for(shape, ROOMY_GIB[rehearse], rehearse=rehearse, **wishes)
    accelerator.prepare()
    network = network_for(shape, plan, config.lora)
    if kind == "forced" and not rehearse:
        moving = sum(plan.estimate.part_bytes(key) for key in ("activations", "loss", "workspace"))
        static = plan.estimate.part_bytes("gradients") + plan.estimate.part_bytes("optimizer")
        accelerator.release()
        accelerator.cap(torch.cuda.memory_reserved() + static + round(ROOM * moving))
    events: list[ev.Event] = []
    with tempfile.TemporaryDirectory() as folder:
        examples = draw_rows(shape, row, ROWS * STEPS)
        setup = Setup(config, plan, accelerator, network, examples, [], Path(folder), shape.name)
        loop = TrainingLoop(setup, events.append, lambda: replay(loop, changes))
        if kind == "forced" and rehearse:
            pretend_out_of_memory(loop.loss_function)
        loop.run()
    steps = [event for event in events if isinstance(event, ev.StepLogged)]
    return {
        "losses": [step.loss for step in steps],
        "norms": [step.grad_norm for step in steps],
        "changes": [
            {
                "step": event.step,
                "words": event.change,
                "micro_batch_tokens": event.micro_batch_tokens,
                "checkpointed_layers": event.checkpointed_layers,
                "tiled_mlp": event.tiled_mlp,
            }
            for event in events
            if isinstance(event, ev.StepRetriedSmaller)
        ],
        "bound": 0.5 / max((step.trained_tokens for step in steps), default=1),
    }


def draw_rows(shape: Any, longest: int, count: int) -> list[Any]:
    """Rows of five lengths that train three quarters of themselves."""
    import torch

    from qlora_studio.core.example import Example

    ids = torch.randint(0, shape.vocab, (longest,), generator=torch.Generator().manual_seed(SEED)).tolist()
    lengths = [longest - longest // 7 * (index % 5) for index in range(count)]
    return [Example(tuple(ids[-length:]), ((length // 4, length),)) for length in lengths]


def replay(loop: Any, changes: Sequence[dict[str, Any]]) -> str:
    """Between steps: the limits that the forced run had come to by the end of the next step."""
    from dataclasses import replace

    due = [change for change in changes if change["step"] <= loop.step + 1]
    if due:
        names = ("micro_batch_tokens", "checkpointed_layers", "tiled_mlp")
        loop.ladder.set_limits(replace(loop.ladder.limits, **{name: due[-1][name] for name in names}))
    return ""


def pretend_out_of_memory(loss_function: Any) -> None:
    """Lets some micro-batches run out of memory after their forward pass, as a card does."""
    import torch

    compute, computed = loss_function.row_losses, iter(range(1, 1_000_000))

    def row_losses(batch: Any) -> Any:
        losses = compute(batch)
        if next(computed) in PRETENDED:
            raise torch.OutOfMemoryError("pretended: nothing caps a processor")
        return losses

    loss_function.row_losses = row_losses


def compare_cuts(shape: Any) -> dict[str, Any]:
    """The relative difference of a step's gradient, whole and as single checkpointed rows, in each number format."""
    import torch

    from qlora_studio.core.config import TrainConfig
    from qlora_studio.engine.accelerator.choose import choose_accelerator
    from qlora_studio.engine.load import attach_adapter

    accelerator = choose_accelerator()
    found = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        network = attach_adapter(
            draw_base(shape, accelerator.device, dtype), TrainConfig().lora, torch.float32, SEED
        ).train()
        for parameter in network.parameters():
            if parameter.requires_grad:  # B begins at zero, and A would have no gradient
                parameter.data.normal_(std=0.02)
        whole = gradient_of(network, shape, micro_batch_tokens=ROWS * CUT_ROW, checkpointed_layers=0)
        cut = gradient_of(network, shape, micro_batch_tokens=1, checkpointed_layers=shape.layers)
        found[name] = float((whole - cut).norm() / whole.norm())
        del network
        accelerator.release()
    return found


def gradient_of(network: Any, shape: Any, *, micro_batch_tokens: int, checkpointed_layers: int) -> Any:
    """The gradient of the step's loss by the engine's own accumulator, all parameters in one fp64 vector on the host."""
    import torch

    from qlora_studio.engine.accelerator.choose import choose_accelerator
    from qlora_studio.engine.accumulator import Accumulator, StepRows
    from qlora_studio.engine.forward import LossFunction
    from qlora_studio.engine.ladder import Limits, MemoryLadder
    from qlora_studio.engine.objectives.registry import find_objective

    limits = Limits(max(micro_batch_tokens, CUT_ROW), checkpointed_layers, shape.layers)
    ladder = MemoryLadder(network, choose_accelerator(), limits)
    examples = draw_rows(shape, CUT_ROW, ROWS)
    accumulator = Accumulator(find_objective("supervised"), LossFunction(network), examples, ladder, seed=SEED)
    network.zero_grad(set_to_none=True)
    accumulator.add_gradients(StepRows(tuple(range(ROWS)), 1))
    if ladder.limits != limits:
        raise MemoryError(f"a step of {ROWS} rows of {CUT_ROW} tokens does not fit in one piece")
    gradients = [
        parameter.grad.double().flatten().cpu() for parameter in network.parameters() if parameter.requires_grad
    ]
    return torch.cat(gradients)
