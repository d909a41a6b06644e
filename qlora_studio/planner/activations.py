"""What a training step holds besides weights, adapter and optimizer: formulas per token, and the moment of the peak.

Counted from what autograd keeps in the transformers implementations with our LoRA forward, and checked against the
allocator (docs/memory.md). Symbols: e bytes of the compute format, h hidden, I intermediate, q = heads x head_dim,
k = kv_heads x head_dim, r rank, N tokens of the micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from qlora_studio.core.plan import LayerCosts, ModelShape, PlanSettings
from qlora_studio.planner.families import family_of, list_linears

LOSS_CHUNK = 256
"""Positions whose logits exist at once; the constant of the engine's loss."""


def layer_costs(shape: ModelShape, settings: PlanSettings) -> LayerCosts:
    """Bytes of one decoder layer, measured for this architecture or from the formulas of its family."""
    if shape.measured is not None:
        return shape.measured.costs
    e, family = settings.compute_bytes, family_of(shape)
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    inner = e * shape.intermediate
    norms = family.norms * (4 * shape.hidden + 4) + 2 * e * shape.hidden
    if shape.qk_norm:
        norms += 4 * (queries + keys) + 4 * (shape.heads + shape.kv_heads)
    attention = e * (2 * queries + 2 * keys) + 4 * shape.heads
    linears = list_linears(shape)
    low_rank = e * settings.rank * sum(linear.count for linear in linears) // shape.layers
    copies = 0
    if settings.adapter_bytes != e:
        copies = e * settings.rank * sum(linear.inputs + linear.outputs for linear in linears)
    return LayerCosts(
        boundary=e * shape.hidden,
        saved=norms + attention + low_rank + 4 * inner,
        backward=3 * inner + 2 * e * shape.hidden,
        saved_fixed=copies,
        backward_fixed=dequantised_bytes(shape, settings),
    )


def dequantised_bytes(shape: ModelShape, settings: PlanSettings) -> int:
    """The largest weight matrix, taken out of its four bits for one multiplication."""
    return settings.compute_bytes * max(linear.weights for linear in list_linears(shape))


@dataclass(frozen=True, slots=True)
class StepPeak:
    """Bytes at the worst moment of a training step, by what they are."""

    activations: int
    loss: int
    workspace: int

    @property
    def total(self) -> int:
        return self.activations + self.loss + self.workspace


def step_peak(shape: ModelShape, settings: PlanSettings) -> StepPeak:
    """The worst of three moments: the loss, backward through a layer kept whole, or through one computed again."""
    costs, tokens, e = layer_costs(shape, settings), settings.micro_batch_tokens, settings.compute_bytes
    twice = settings.checkpointed_layers
    workspace, gradient = costs.backward_fixed, e * shape.hidden * tokens
    kept = held_bytes(shape, settings)
    moments = [StepPeak(kept, loss_bytes(shape, settings), 0)]
    if twice < shape.layers:
        moments.append(StepPeak(round(kept + costs.backward * tokens), gradient, workspace))
    if twice:
        left = kept - (shape.layers - twice) * (costs.saved * tokens + costs.saved_fixed)
        again = costs.saved * tokens + costs.saved_fixed + costs.backward * tokens
        moments.append(StepPeak(round(left + again), gradient, workspace))
    return max(moments, key=lambda moment: moment.total)


def held_bytes(shape: ModelShape, settings: PlanSettings) -> int:
    """Bytes that wait between the end of forward and the start of backward."""
    costs, tokens, e = layer_costs(shape, settings), settings.micro_batch_tokens, settings.compute_bytes
    twice = settings.checkpointed_layers
    layers = twice * costs.boundary * tokens + (shape.layers - twice) * (costs.saved * tokens + costs.saved_fixed)
    rotary = 2 * e * (shape.rotary_dim or shape.head_dim) * family_of(shape).rotary_tables * tokens
    last_norm = (4 + e) * shape.hidden * tokens
    return round(layers + rotary + last_norm + 24 * tokens)


def loss_bytes(shape: ModelShape, settings: PlanSettings) -> int:
    """Bytes of the loss at its worst: one chunk of logits in compute format and fp32, and the gradient it leaves."""
    trained = settings.trained_tokens or settings.micro_batch_tokens
    logits = min(LOSS_CHUNK, trained) * shape.vocab * (settings.compute_bytes + 4)
    return logits + settings.compute_bytes * shape.hidden * settings.micro_batch_tokens
