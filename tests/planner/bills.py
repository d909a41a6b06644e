"""The table of bills: what the planner says of many steps and plans, number by number, kept beside the tests.

A formula is checked by measurement elsewhere, within percents; here stands what it comes to, so that no number of it
changes unseen. Written anew by `python -m tests.planner.bills`, when a change is meant; the difference is read then.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.machine import Machine
from qlora_studio.core.plan import GIB, MeasuredShape, ModelShape, Moment, PlanSettings, StackedShape, StepCosts
from qlora_studio.planner.activations import step_costs
from qlora_studio.planner.estimate import estimate, host_bytes
from qlora_studio.planner.families import list_linears
from qlora_studio.planner.fit import make_plan
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES
from qlora_studio.planner.search import step_time
from qlora_studio.planner.tables import imagine_machine
from qlora_studio.planner.time import Work, estimate_time, flops_per_token

TABLE = Path(__file__).with_name("bills.json")
PROCESSOR = Machine(memory_bytes=32 * GIB, memory_available_bytes=24 * GIB, cores=8, cpu_bf16=True)
TURING = imagine_machine(8).model_copy(
    update={"cards": (imagine_machine(8).cards[0].model_copy(update={"compute_capability": (7, 5)}),)}
)
MACHINES = ((imagine_machine(6), "6 GB"), (imagine_machine(12), "12 GB"), (TURING, "Turing"), (PROCESSOR, "CPU"))
NAMES = ("SmolLM2-135M", "Phi-4-mini", "Gemma-3-4B", "Qwen3-4B")
SETTINGS: dict[str, dict[str, Any]] = {
    "a card, padded": {},
    "fp16, two rows": {"compute": "fp16", "row_tokens": 1024},
    "packed": {"packed": True, "row_tokens": 500, "micro_batch_tokens": 2000},
    "packed, one checkpointed": {"packed": True, "row_tokens": 2000, "micro_batch_tokens": 2000, "checkpointed_layers": 1},
    "packed, most checkpointed": {"packed": True, "row_tokens": 512, "checkpointed_layers": 29},
    "all checkpointed": {"checkpointed_layers": -1, "trained_tokens": 100},
    "in tiles": {"tiled_mlp": True, "micro_batch_tokens": 9000, "checkpointed_layers": -1, "packed": True},
    "in tiles, none checkpointed": {"tiled_mlp": True, "micro_batch_tokens": 1500, "adapter_precision": "bf16"},
    "DoRA": {"dora": True, "optimizer": "adamw", "micro_batch_tokens": 1024},
    "DoRA, few tokens": {"dora": True, "micro_batch_tokens": 100, "packed": True, "checkpointed_layers": 3},
    "dropout": {"dropout": True, "rank": 64},
    "dropout on a processor": {"dropout": True, "device": "cpu", "micro_batch_tokens": 512},
    "some layers adapted": {"adapted": ("q_proj", "v_proj", "qkv_proj"), "adapter_precision": "bf16", "rank": 8},
    "five layers adapted": {"adapted_layers": 5, "optimizer": "adamw"},
    "offloaded": {"offload": "both", "checkpointed_layers": -1, "packed": True, "row_tokens": 700},
    "inputs offloaded": {"offload": "boundaries", "checkpointed_layers": 7, "micro_batch_tokens": 4096},
    "longer than a window, cut by row": {"packed": True, "cut_by_row": True, "row_tokens": 1500, "micro_batch_tokens": 4000},
    "longer than a window, padded": {"row_tokens": 1500, "micro_batch_tokens": 3000, "checkpointed_layers": 2},
    "heads repeated": {"repeats_kv": True, "row_tokens": 1024, "correction": 1.25},
    "one token": {"micro_batch_tokens": 1},
    "a processor, padded": {"device": "cpu", "compute": "fp32", "micro_batch_tokens": 1000, "row_tokens": 250},
    "a processor, packed": {"device": "cpu", "packed": True, "row_tokens": 300, "micro_batch_tokens": 1000},
    "a processor, short rows": {"device": "cpu", "packed": True, "row_tokens": 40, "micro_batch_tokens": 65},
    "a processor, long rows": {
        "device": "cpu", "compute": "fp32", "packed": True, "row_tokens": 1100, "micro_batch_tokens": 2050,
        "checkpointed_layers": 4,
    },
}  # fmt: skip
"""Of a step; -1 layers are all."""


def shapes() -> Iterator[ModelShape]:
    """Known families, one with biases, and two that a dry run would have measured."""
    yield from (REFERENCE_SHAPES[name] for name in NAMES)
    small = REFERENCE_SHAPES["SmolLM2-135M"]
    biases = {"attention_bias": True, "output_bias": True, "mlp_bias": True, "rotary_dim": 32}
    yield small.model_copy(update={"name": "with biases", "family": "qwen2", "tied_embeddings": False, **biases})
    for eager in (False, True):
        moments = Moment(100.0, 7000, 3.0 if eager else 0.0, 576.0, True), Moment(90.5, 9000, attention=not eager)
        costs = StepCosts(1152.0, 30000.5, 5000, 1156.0, 272.0, 1200.0, moments, Moment(2304.0, norm_width=576.0))
        pairs = dataclasses.replace(costs, saved_pairs=18.0 * eager, around_pairs=2.0 * eager)
        measured = MeasuredShape(
            linears=tuple(list_linears(small)),
            other_bytes=60_000_000,
            stacked=(StackedShape("model.layers.*.experts", 1_000_000, 30, 0.25),),
            eager=eager,
            costs={"bf16": pairs, "fp32": dataclasses.replace(pairs, saved=61000.0)},
            tiled={} if eager else {"bf16": dataclasses.replace(pairs, saved=20000.0), "fp32": pairs},
            rank=8,
        )
        name = "measured, eager" if eager else "measured"
        yield small.model_copy(update={"name": name, "family": "other", "exact": False, "measured": measured})


def bill_of(shape: ModelShape, settings: PlanSettings) -> dict[str, Any]:
    """Every item in bytes, and the costs a token that the step's peak is made of."""
    return {
        "bytes": [part.bytes for part in estimate(shape, settings).parts],
        "host": host_bytes(shape, settings),
        "time": rounded(step_time(settings, shape)),
        "costs": without_zeros(dataclasses.asdict(step_costs(shape, settings))),
    }


def plan_of(shape: ModelShape, machine: Machine) -> dict[str, Any]:
    """What is chosen for a run with the shipped settings, and what it would take of time."""
    config = TrainConfig()
    plan = make_plan(config, shape, machine)
    work = Work(steps=100, tokens=400_000, row_tokens=300.0, held_out_tokens=20_000, padding=1.1)
    time = estimate_time(config, shape, plan, work, machine)
    return {
        "settings": [plan.micro_batch_tokens, plan.checkpointed_layers, plan.adapter_precision, plan.offload],
        "tiled": plan.tiled_mlp,
        "missing": plan.missing_bytes,
        "words": [*plan.reasons, *plan.changes],
        "longest": plan.longest_context,
        "rank": plan.largest_rank,
        "flops": rounded(flops_per_token(shape, plan.checkpointed_layers, 300.0)),
        "seconds": rounded(time.seconds),
        "speed": rounded(time.tokens_per_second),
    }


def cases() -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Names of all rows of the table, and what computes them."""
    for shape in shapes():
        for name, changes in SETTINGS.items():
            if changes.get("tiled_mlp") and shape.measured is not None and not shape.measured.tiled:
                continue
            layers = changes.get("checkpointed_layers", 0)
            settings = PlanSettings(**{**changes, "checkpointed_layers": shape.layers if layers < 0 else layers})
            yield f"{shape.name}: {name}", partial(bill_of, shape, settings)
    for shape in shapes():
        for machine, name in MACHINES:
            yield f"{shape.name} on {name}", partial(plan_of, shape, machine)


def without_zeros(value: Any) -> Any:
    """The same with what is 0, None or False left out, and numbers rounded."""
    if isinstance(value, dict):
        return {key: without_zeros(inner) for key, inner in value.items() if inner}
    if isinstance(value, list | tuple):
        return [without_zeros(inner) for inner in value]
    return rounded(value) if isinstance(value, float) else value


def rounded(value: float) -> float:
    """Ten digits: other processors add up in another order."""
    return float(f"{value:.10g}")


if __name__ == "__main__":
    rows = [f"{json.dumps(name)}: {json.dumps(compute())}" for name, compute in cases()]
    TABLE.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
