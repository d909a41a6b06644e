"""How long a run will take: by what this machine measured before, else by a formula that says that it is rough.

A run's arithmetic is counted (matrix products of the layers, attention, head), and divided by the arithmetic a second
that earlier runs reached here. Where there were none, a layer costs its products at a share of the card's peak, the bytes
that its elementwise work and dequantisation move at a share of the card's bandwidth, and never less than the time the
host takes to start its kernels. Within a fifth of a count of every kernel of a layer, for an
RTX 4090, 4060 and 3060 (a test); no card was measured yet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.events import StepLogged
from qlora_studio.core.machine import Machine, Speed
from qlora_studio.core.micro_batches import cut_rows, tokens_of
from qlora_studio.core.plan import GpuInfo, MemoryPlan, ModelShape, PlanSettings
from qlora_studio.core.readiness import TimeEstimate
from qlora_studio.core.steps import Step, evaluation_steps
from qlora_studio.planner.activations import step_costs
from qlora_studio.planner.families import count_recomputed, count_weights

MATMUL_SHARE, BANDWIDTH_SHARE = 0.8, 0.85
"""What large products reach of a card's peak, and copies of its bandwidth."""
ELEMENTWISE = 14
"""Bytes that a layer's elementwise kernels move for each byte it keeps: counted by hand for an 8B layer (1.53 MB a token,
of it 0.66 in the gated MLP), 1.3 times as much where the layer is computed again."""
HOST_SECONDS, HOST_SECONDS_TWICE = 0.0024, 0.0044
"""Time the host takes to start the kernels of a layer, kept and computed again; measured on a CPU."""
UNKNOWN_CARD_FLOPS, UNKNOWN_CARD_BANDWIDTH = 20e12, 300e9
"""A card whose driver tells neither cores nor clocks is taken for a small one."""
CORE_FLOPS = {True: 110e9, False: 40e9}
"""Arithmetic a second of a processor's core, with bf16 of its own and without. 2026-11-21, two cores of an AMD EPYC with
AVX512-BF16, SmolLM2-135M: 410 tokens/s; without it: a guess."""
START_SECONDS = 20
"""Starting the worker, importing, reading rows; then the weights pass once at `LOAD_BANDWIDTH`."""
LOAD_BANDWIDTH = 0.5e9
SAMPLED_STEPS = 200
"""Steps that are cut to find how much padding there is; the others hold rows of the same kind."""
WARM_STEPS = 3
"""First steps, which are slower and say nothing of the others."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a run has to compute."""

    steps: int
    tokens: int
    """Of all steps together, without padding."""
    row_tokens: float
    """Of a row on average."""
    held_out_tokens: int = 0
    padding: float = 1.0
    """Tokens that are computed for each real one: more than one where rows are padded."""


def flops_per_token(shape: ModelShape, checkpointed_layers: int, row_tokens: float) -> float:
    """Multiplications and additions for one token of a row of this length, forward and backward.

    2 a weight forward and 2 backward, for frozen weights have no gradient; 2 more where it is computed again.
    Attention over causal rows: 3.5 times its forward, 4.5 where computed again (Dao 2023, arXiv 2307.08691).
    """
    again = checkpointed_layers / shape.layers
    products = 4 * count_weights(shape) + 2 * again * count_recomputed(shape)
    attention = (3.5 + again) * row_tokens * 2 * shape.heads * shape.head_dim * shape.layers
    return products + attention + 4 * shape.vocab * shape.hidden


def measured_speed(
    shape: ModelShape, plan: MemoryPlan, steps: Sequence[StepLogged], padding: float = 1.0
) -> Speed | None:
    """How fast these steps were; None where there are too few to tell. `padding` as in `Work`."""
    warm = [step for step in steps[WARM_STEPS:] if step.tokens_per_second > 0]
    seconds = sum(step.tokens / step.tokens_per_second for step in warm)
    if len(warm) < WARM_STEPS or seconds <= 0:
        return None
    rows = plan.settings.row_tokens if plan.settings else None
    done = (
        padding
        * sum(step.tokens for step in warm)
        * flops_per_token(shape, plan.checkpointed_layers, (rows or plan.micro_batch_tokens) / 2)
    )
    return Speed(model=shape.name, weights=count_weights(shape), flops_per_second=done / seconds)


def estimate_time(
    config: TrainConfig, shape: ModelShape, plan: MemoryPlan, work: Work, machine: Machine
) -> TimeEstimate:
    """Seconds from start to the saved adapter, a download of the base aside."""
    row = work.row_tokens
    per_token = flops_per_token(shape, plan.checkpointed_layers, row)
    speed = _nearest(machine.speeds, count_weights(shape))
    if speed is not None:
        rate, measured = speed.flops_per_second, True
        basis = f"by what {'this card' if machine.card else 'this processor'} reached with {speed.model}"
    else:
        rate, measured = _rough_rate(shape, plan, machine, row), False
        basis = "by a rough formula: nothing was measured on this machine yet"
    forward = 2 * count_weights(shape) + 2 * shape.vocab * shape.hidden
    measures = len(evaluation_steps(work.steps, config.evaluation.every_steps)) + config.evaluation.before
    evaluating = work.held_out_tokens * forward * (measures if work.held_out_tokens else 0)
    loading = START_SECONDS + 2 * count_weights(shape) / LOAD_BANDWIDTH
    return TimeEstimate(
        seconds=loading + work.padding * (work.tokens * per_token + evaluating) / rate,
        tokens_per_second=rate / per_token / work.padding,
        measured=measured,
        basis=basis,
    )


def _nearest(speeds: Sequence[Speed], weights: int) -> Speed | None:
    """The measurement of the model nearest in size; small models reach less of a machine than large ones."""
    return min(speeds, key=lambda speed: abs(math.log(speed.weights / weights)), default=None) if weights else None


def _rough_rate(shape: ModelShape, plan: MemoryPlan, machine: Machine, row_tokens: float) -> float:
    """Arithmetic a second by formula."""
    settings = plan.settings or PlanSettings(micro_batch_tokens=plan.micro_batch_tokens)
    if machine.card is None:
        return machine.cores * CORE_FLOPS[settings.compute == "bf16"]
    return _card_rate(shape, settings, machine.card, row_tokens)


def _card_rate(shape: ModelShape, settings: PlanSettings, card: GpuInfo, row_tokens: float) -> float:
    peak = (card.peak_flops or UNKNOWN_CARD_FLOPS) * MATMUL_SHARE
    bandwidth = (card.bandwidth or UNKNOWN_CARD_BANDWIDTH) * BANDWIDTH_SHARE
    again, tokens = settings.checkpointed_layers / shape.layers, settings.micro_batch_tokens
    total = flops_per_token(shape, settings.checkpointed_layers, row_tokens) * tokens
    head = 4 * shape.vocab * shape.hidden * tokens
    moved = ELEMENTWISE * (1 + 0.3 * again) * step_costs(shape, settings).saved * tokens
    # each pass reads half a byte a weight, writes it in the compute format and reads that again
    dequantised = (2 + again) * (0.5 + 2 * settings.compute_bytes) * count_weights(shape) / shape.layers
    layer = (total - head) / shape.layers / peak + (moved + dequantised) / bandwidth
    host = HOST_SECONDS + (HOST_SECONDS_TWICE - HOST_SECONDS) * again
    return total / (max(layer, host) * shape.layers + head / peak)


def work_of(
    lengths: Sequence[int], steps: Sequence[Step], held_out_rows: int, settings: PlanSettings | None = None
) -> Work:
    """What these steps amount to, cut as `settings` say; held-out rows are taken to be as long as the others."""
    tokens = sum(lengths[row] for step in steps for row in step.rows)
    mean = sum(lengths) / len(lengths) if lengths else 0.0
    return Work(
        steps=len(steps),
        tokens=tokens,
        row_tokens=mean,
        held_out_tokens=round(held_out_rows * mean),
        padding=padding_of_steps(lengths, steps, settings) if settings is not None else 1.0,
    )


def padding_of_steps(lengths: Sequence[int], steps: Sequence[Step], settings: PlanSettings) -> float:
    """Tokens that these steps compute for each that is real; packed, next to one."""
    real = sum(lengths[row] for step in steps[:SAMPLED_STEPS] for row in step.rows)
    most, packed = settings.micro_batch_tokens, settings.packed
    computed = sum(
        tokens_of([lengths[step.rows[place]] for place in places], packed=packed)
        for step in steps[:SAMPLED_STEPS]
        for places in cut_rows(step.rows, lengths, most, packed=packed)
    )
    return computed / real if real else 1.0
