"""What forward and backward hold besides weights, adapter and optimizer, and the moment at which it is most.

The formulas count what autograd keeps of the transformers implementations with our LoRA forward, tensor by tensor, and
agree with the allocator within a few percent (docs/memory.md). Sizes are bytes per token unless they say otherwise.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from qlora_studio.core.micro_batches import GRAIN, filled
from qlora_studio.core.plan import MeasuredShape, ModelShape, Moment, PlanSettings, StepCosts
from qlora_studio.planner.families import family_of, is_in_mlp, list_adapted, rotary_tables

LOSS_CHUNK = 256
"""Positions whose logits exist at once: the constant of the engine's loss (a test compares them)."""
INTEGER_BYTES = 16
"""Ids and labels of a token."""
NORM_NUMBERS = {"cpu": 1 << 20, "cuda": 1 << 22}
"""Numbers of which a norm holds three fp32 copies at once: the constant of the engine's kernel (a test compares them)."""
MLP_ROWS = {"cpu": 256, "cuda": 1024}
"""Tokens whose inner tensors the gated MLP makes again at once: the engine's constants (a test compares them)."""
MLP_TILE = 1024
"""Tokens of a tile, likewise."""
DORA_ROWS = 256
"""Tokens of which DoRA's backward pass multiplies outputs and gradients at once, likewise."""
SHORT_ROW, SHORT_BLOCK = 512, 64
"""Longest row whose attention goes backward by products of blocks of queries, and queries of a block, likewise."""
EAGER_MARGIN = 1.15
"""Without a fused kernel products copy what lies in several rows, more than a dry run of two rows shows: up to 15 % of a
step with four rows (2026-11-21, tiny Bloom, GPT-J, gpt-oss, Falcon)."""
WHOLE_LOGITS = 16
"""Bytes per logit where all exist at once: compute format, fp32, probabilities, their gradient and its copy."""


class StepPeak(NamedTuple):
    """Bytes at the worst moment of forward and backward, by what they are. A search makes a million of them."""

    activations: int
    loss: int
    workspace: int

    @property
    def total(self) -> int:
        return self.activations + self.loss + self.workspace


def step_peak(shape: ModelShape, settings: PlanSettings) -> StepPeak:
    """The worst of five moments.

    The last MLP on the way forward; the loss; backward through the last norm; backward through a layer that was kept; backward through one that is
    computed again, when everything behind it is gone.
    """
    costs, tokens = step_costs(shape, settings), computed_tokens(settings)
    checkpointed, whole = settings.checkpointed_layers, shape.layers - settings.checkpointed_layers
    pairs = tokens * _row_tokens(settings)
    window = _window_bytes(shape, settings)
    layer = costs.saved * tokens + costs.saved_fixed + costs.saved_pairs * pairs
    local = whole * shape.sliding_layers / shape.layers
    waiting = min(checkpointed, 1) if settings.offload in ("boundaries", "both") else checkpointed
    start = (
        waiting * costs.boundary * tokens
        + costs.around * tokens
        + costs.around_pairs * pairs
        + (_shared_mask_bytes(shape, settings) if checkpointed else 0)
    )
    kept = start + whole * layer + local * window - (0 if checkpointed else costs.first_saved_less * tokens)
    ending = kept + costs.ending * tokens
    moments = [
        StepPeak(round(ending), loss_bytes(shape, settings), 0),
        _at(shape, ending, costs.end, settings),
    ]
    if whole and costs.forward is not None:
        embedded = 0 if checkpointed else costs.first_saved_less * tokens  # the model's forward holds on to it
        moments.append(_at(shape, kept + embedded, costs.forward, settings))
    for moment in costs.layer:
        if whole:
            moments.append(_at(shape, kept, moment, settings))
        if checkpointed:
            first = costs.first_saved_less * tokens if checkpointed == 1 else 0
            again = start + layer - costs.boundary * tokens + (window if shape.sliding_layers else 0) - first
            moments.append(_at(shape, again, moment, settings))
    worst = max(moments, key=lambda moment: moment.total)
    margin = _margin(shape)
    return StepPeak(*(round(margin * part) for part in (worst.activations, worst.loss, worst.workspace)))


def _margin(shape: ModelShape) -> float:
    """What is laid on top of a dry run; formulas have none."""
    if shape.measured is None:
        return 1.0
    return EAGER_MARGIN if shape.measured.eager else 1.0


def _at(shape: ModelShape, kept: float, moment: Moment, settings: PlanSettings) -> StepPeak:
    """What there is at a moment. A measured line may meet zero tokens below zero; that is no workspace."""
    tokens = computed_tokens(settings)
    held = kept + moment.per_token * tokens + moment.per_pair * (tokens * _row_tokens(settings))
    blocks = _block_bytes(shape, moment, settings, tokens)
    return StepPeak(round(held) + min(0, moment.fixed), 0, max(0, moment.fixed) + blocks)


def _block_bytes(shape: ModelShape, moment: Moment, settings: PlanSettings, tokens: int) -> int:
    """What kernels hold that work in blocks: norms in fp32, gated MLPs of their inner tensors, and attention."""
    device, total = settings.device, 0.0
    if not (device == "cuda" and moment.norm_fused):
        total += 12 * min(NORM_NUMBERS[device], tokens * moment.norm_width)
    total += 2 * settings.compute_bytes * moment.inner_width * min(MLP_ROWS[device], tokens)
    total += 2 * settings.compute_bytes * moment.tile_width * min(MLP_TILE, tokens)
    return round(total) + (_attention_bytes(shape, settings) if moment.attention else 0)


def step_costs(shape: ModelShape, settings: PlanSettings) -> StepCosts:
    """Costs of one micro-batch: measured for this architecture, or by the formulas of its family."""
    if shape.measured is not None:
        return _measured_costs(shape, shape.measured, settings)
    e = settings.compute_bytes
    rotary = 2 * e * (shape.rotary_dim or shape.head_dim) * rotary_tables(shape)
    norm = e * shape.hidden + 4  # its input as it is and one scale
    return StepCosts(
        boundary=boundary_bytes(shape, settings),
        saved=_saved(shape, settings),
        saved_fixed=_adapter_copies(shape, settings) // shape.layers,
        first_saved_less=norm,
        around=rotary + INTEGER_BYTES,
        ending=norm,
        layer=tuple(_layer_moments(shape, settings)),
        end=_norm_moment(shape, shape.hidden, 2 * e * shape.hidden),
        forward=_forward_moment(shape, settings),
    )


def _forward_moment(shape: ModelShape, settings: PlanSettings) -> Moment | None:
    """The last layer's MLP on the way forward: its result, the last matrix, and blocks of the inner width.

    In Gemma the result is what the norm behind the MLP keeps, and counted there.
    """
    if settings.dora or settings.tiled_mlp:
        return None
    result = settings.compute_bytes * shape.hidden
    return Moment(
        -4 if family_of(shape).norms == 4 else result, result * shape.intermediate, inner_width=shape.intermediate
    )


def _norm_moment(shape: ModelShape, width: int, per_token: float) -> Moment:
    """Backward through a norm; a card has one kernel for plain weights, and none for Gemma's."""
    return Moment(per_token=per_token, norm_width=width, norm_fused=not family_of(shape).norm_in_fp32)


def boundary_bytes(shape: ModelShape, settings: PlanSettings) -> float:
    """A layer's input per token: all that a checkpointed layer keeps."""
    if shape.measured is not None:
        return shape.measured.costs["fp32" if settings.compute == "fp32" else "bf16"].boundary
    return settings.compute_bytes * shape.hidden


def _measured_costs(shape: ModelShape, measured: MeasuredShape, settings: PlanSettings) -> StepCosts:
    """The dry run's costs at this rank and adapter format; only what comes from the adapter depends on them."""
    by_format = measured.tiled if settings.tiled_mlp else measured.costs
    costs = by_format["fp32" if settings.compute == "fp32" else "bf16"]
    kept = [linear for linear in measured.linears if not (settings.tiled_mlp and is_in_mlp(linear))]
    per_layer = sum(linear.count for linear in kept) / shape.layers
    return replace(
        costs,
        saved=costs.saved
        + settings.compute_bytes * (settings.rank - measured.rank) * per_layer
        + _dora_bytes(shape, settings)
        + _repeated_bytes(shape, settings),
        saved_fixed=_adapter_copies(shape, settings) // shape.layers,
    )


def _saved(shape: ModelShape, settings: PlanSettings) -> float:
    """Kept by a layer from forward to backward."""
    e, family = settings.compute_bytes, family_of(shape)
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    norms = family.norms * (e * shape.hidden + 4) + 2 * e * shape.hidden  # inputs; two outputs feed adapters
    if shape.qk_norm:
        norms += e * (queries + keys) + 4 * (shape.heads + shape.kv_heads)
    attention = e * (2 * queries + 2 * keys) + 4 * shape.heads  # q, k, v, output, and a sum for each head
    attention += _repeated_bytes(shape, settings)
    if settings.cut_by_row and settings.packed and _row_tokens(settings) < settings.micro_batch_tokens:
        attention += e * queries  # the outputs of the rows, and what is put together of them
    if family.fused:
        attention += 0 if settings.repeats_kv else e * (queries + keys)  # v keeps the matrix it is part of
    if settings.dora:
        attention += 2 * e * shape.hidden + (0 if shape.qk_norm else e * (queries + keys))  # outputs nobody else keeps
    adapted = [linear for linear in list_adapted(shape, settings) if not (settings.tiled_mlp and is_in_mlp(linear))]
    low_rank = e * settings.rank * sum(linear.count for linear in adapted) / shape.layers
    kept = 4 if settings.dora else 0 if settings.tiled_mlp else 2  # DoRA: act(gate) and the product as well
    return norms + attention + low_rank + kept * e * shape.intermediate


def _repeated_bytes(shape: ModelShape, settings: PlanSettings) -> int:
    """Kept more by a layer whose keys and values are repeated for every head."""
    return 2 * settings.compute_bytes * (shape.heads - shape.kv_heads) * shape.head_dim if settings.repeats_kv else 0


def _dora_bytes(shape: ModelShape, settings: PlanSettings) -> float:
    """Kept more by a layer of a measured family with DoRA: the output of every layer, at most."""
    outputs = sum(linear.outputs * linear.count for linear in list_adapted(shape, settings)) / shape.layers
    return settings.compute_bytes * outputs if settings.dora else 0.0


def _layer_moments(shape: ModelShape, settings: PlanSettings) -> list[Moment]:
    """The worst moments of a layer's backward pass: around the MLP, where its largest tensors are all still there."""
    h, inner = settings.compute_bytes * shape.hidden, settings.compute_bytes * shape.intermediate
    matrix = settings.compute_bytes * shape.hidden * shape.intermediate  # one matrix of the MLP dequantised
    gradient: float = h
    moments = []
    if family_of(shape).norms == 4:
        moments.append(_norm_moment(shape, shape.hidden, 2 * h))
        gradient = h - 4  # the norm behind the MLP is gone with what it kept
    if settings.dora:
        wide = 7 if family_of(shape).fused else 3  # gradients of the inner width; parts of one matrix have whole ones
        part = settings.compute_bytes * min(DORA_ROWS, settings.micro_batch_tokens) * shape.intermediate
        return [*moments, Moment(per_token=gradient + h + wide * inner, fixed=2 * matrix + part)]
    first = matrix * (2 if family_of(shape).fused else 1)
    if settings.tiled_mlp:
        tile = min(MLP_TILE, computed_tokens(settings))
        within = Moment(per_token=gradient + h, fixed=2 * inner * tile + matrix, inner_width=shape.intermediate)
        moments.append(within)
        moments.append(Moment(per_token=gradient + h, fixed=2 * inner * tile + first))
    else:
        drawn = shape.intermediate if settings.dropout else 0  # what dropout leaves, a byte a number
        thin = 2 * h + shape.hidden if settings.dropout else 0
        rows = min(MLP_ROWS[settings.device], settings.micro_batch_tokens)
        spread = inner * rows if settings.dropout and settings.device == "cpu" else 0  # the mask as numbers
        block = Moment(per_token=gradient + drawn, fixed=matrix + spread, inner_width=shape.intermediate)
        moments += [block, Moment(per_token=gradient + h + thin, fixed=first)]
    return [*moments, *_attention_moments(shape, settings)]


def _attention_moments(shape: ModelShape, settings: PlanSettings) -> list[Moment]:
    """Backward through the norm in front of the MLP, when that is gone with what it kept, attention, and its norms."""
    e, queries, keys = settings.compute_bytes, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    gone = 0 if settings.tiled_mlp else 2 * e * shape.intermediate
    # the gradient, without what the norm in front of the MLP kept, and in Gemma those behind it and behind attention
    held = e * shape.hidden - (4 if family_of(shape).norms == 4 else 2) * e * shape.hidden - gone
    moments = [
        _norm_moment(shape, shape.hidden, 2 * e * shape.hidden - gone),
        Moment(per_token=held + e * (2 * queries + 2 * keys), attention=True),
    ]
    if shape.qk_norm:
        queries_alone = e * (shape.hidden - 3 * keys)  # values and keys went back before them
        moments.append(_norm_moment(shape, queries, held + queries_alone))
    return moments


def _attention_bytes(shape: ModelShape, settings: PlanSettings) -> int:
    """What attention's backward pass holds besides its gradients.

    A card's flash attention has the gradient of queries in fp32, and those of keys and values for every head. On a
    processor: scores and their gradient in fp32 and in the compute format, and oneDNN's scratch (2.7 bytes a score,
    measured 2026-11-21 with torch 2.13), in blocks whose sizes are those of ATen/native/cpu/FlashAttentionKernel.cpp, for
    two threads (more take more); packed, the gradients of one row and its mask beside those of all.
    """
    e, queries, keys = settings.compute_bytes, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    if settings.device == "cuda":
        return (4 + 2 * e) * queries * computed_tokens(settings)
    row = _row_tokens(settings)
    block = 256 if row >= 768 else 64 if row >= 192 else 32
    total = round(2 * (10.7 + 2 * e) * block * min(512, row))
    if settings.packed and settings.compute == "bf16" and row <= SHORT_ROW and not _masked_pairs(shape, settings):
        scores = (
            shape.heads * min(SHORT_BLOCK, filled(row)) * filled(row)
        )  # 18 bytes each: this block's and the last one's
        total = (18 if row > SHORT_BLOCK else 12) * scores + 12 * keys * filled(row)
    if settings.packed:
        total += e * (queries + 2 * keys) * row if row < settings.micro_batch_tokens else 0
        total += e * queries * row if row % GRAIN else 0  # a copy that is filled up
        total += e * row**2 if _masked_pairs(shape, settings) else 0
    return total


def _adapter_copies(shape: ModelShape, settings: PlanSettings) -> int:
    """Fixed: the adapter in the compute format, which a layer keeps where the adapter itself is in another.

    The gated MLP makes its copies again in the backward pass.
    """
    if settings.adapter_bytes == settings.compute_bytes:
        return 0
    measured, chooses = shape.measured, settings.adapted or settings.adapted_layers is not None
    if measured is not None and "bf16" in measured.costs and not (settings.dora or chooses):
        in_bf16 = shape.layers * measured.costs["bf16"].saved_fixed * settings.rank / measured.rank
        return round(in_bf16 * settings.compute_bytes / 2)
    again = measured is None and not settings.dora
    copied = [linear for linear in list_adapted(shape, settings) if not (again and is_in_mlp(linear))]
    numbers = sum((linear.inputs + linear.outputs) * linear.count for linear in copied)
    return settings.compute_bytes * settings.rank * numbers


def _window_bytes(shape: ModelShape, settings: PlanSettings) -> int:
    """Bytes that a local layer keeps more where it needs a mask: the mask, and keys and values for every head.

    Packed on a processor, or cut by a card's own kernel, there is nothing of that kind to keep.
    """
    if not (pairs := _masked_pairs(shape, settings)) or (settings.packed and not settings.cut_by_row):
        return 0
    e, spread = settings.compute_bytes, (shape.heads - shape.kv_heads) * shape.head_dim
    repeated = 0 if settings.repeats_kv else 2 * spread * settings.micro_batch_tokens
    return e * (pairs + repeated)


def _shared_mask_bytes(shape: ModelShape, settings: PlanSettings) -> int:
    """The mask that all checkpointed local layers hold on to, one byte a pair; each that is kept has its own as well."""
    return 0 if settings.packed or not _masked_pairs(shape, settings) else _row_tokens(settings) ** 2


def _masked_pairs(shape: ModelShape, settings: PlanSettings) -> int:
    """Pairs of tokens in the masks of a local layer; none where rows are shorter than the window."""
    if shape.measured is not None and shape.measured.eager:
        return 0  # the dry run has counted every mask
    if not shape.sliding_layers or shape.sliding_window is None:
        return 0
    row = _row_tokens(settings)
    reaches = row > shape.sliding_window if settings.packed else row >= shape.sliding_window
    return settings.micro_batch_tokens * row if reaches else 0


def computed_tokens(settings: PlanSettings) -> int:
    """Tokens of the micro-batch as they are computed: packed, they are filled up."""
    return filled(settings.micro_batch_tokens) if settings.packed else settings.micro_batch_tokens


def _row_tokens(settings: PlanSettings) -> int:
    return settings.row_tokens or settings.micro_batch_tokens


def loss_bytes(shape: ModelShape, settings: PlanSettings) -> int:
    """Bytes of the loss at its worst: hidden states, their gradient, and a chunk of logits; or all logits at once.

    A chunk exists in the compute format and in fp32, where it becomes its own gradient in place.
    """
    e, tokens = settings.compute_bytes, computed_tokens(settings)
    trained = tokens if settings.trained_tokens is None else min(tokens, settings.trained_tokens)
    if shape.whole_logits:
        return round(WHOLE_LOGITS * tokens * shape.vocab)
    states = e * shape.hidden * (tokens + 2 * trained)
    chunk = min(filled(trained) if settings.device == "cpu" else trained, LOSS_CHUNK)
    logits = (4 if e == 4 else e + 4) * chunk * shape.vocab
    return states + logits
