"""The bill of a training step, item by item, from a shape and settings. Pure arithmetic; no torch, no card."""

from __future__ import annotations

from qlora_studio.core.plan import MIB, MemoryEstimate, MemoryPart, ModelShape, PlanSettings
from qlora_studio.planner.activations import StepPeak, boundary_bytes, step_peak
from qlora_studio.planner.families import (
    count_adapter_numbers,
    count_biases,
    count_norm_weights,
    family_of,
    list_adapted,
    list_linears,
    rotary_tables,
    tensors_of,
)

CONTEXT_BYTES = {"cuda": 560 * MIB, "cpu": 960 * MIB}
"""CUDA context, kernels and cuBLAS workspace: 0.45 to 0.9 GiB on consumer cards; on a CPU the process and libraries."""
SLACK = {"cuda": 0.03, "cpu": 0.3}
"""Share of the rest that the allocator cannot hand out again; on a CPU also what rows of new lengths leave as holes."""
NF4_BLOCK, SECOND_BLOCK = 64, 256
NF4_TABLE_BYTES = 16 * 4
SECOND_TABLE_BYTES = 256 * 4
OPTIMIZER_BLOCK = 256
NOT_AT_PEAK = "Not there at the worst moment"
MIN_8BIT_WEIGHTS = 4096
"""bitsandbytes keeps 32-bit states for tensors with fewer numbers than this."""


def estimate(shape: ModelShape, settings: PlanSettings) -> MemoryEstimate:
    """Every item of the bill in bytes. Static items are exact; activations, loss and workspace are formulas."""
    quantised = sum(linear.count for linear in list_linears(shape) if linear.four_bit)
    adapter = count_adapter_numbers(shape, settings)
    correction = settings.correction
    checkpointing = checkpointing_words(settings, shape.layers)
    peak = step_peak(shape, settings)
    measured = f", times {correction:.2f} as measured on this machine" if correction != 1 else ""
    parts = [
        MemoryPart(
            key="weights_4bit",
            label="Weights, 4 bit",
            bytes=nf4_bytes(shape),
            basis=f"{quantised} linear layers in NF4 with double quantisation",
        ),
        MemoryPart(
            key="weights_16bit",
            label="Weights, 16 bit" if settings.compute_bytes == 2 else "Weights, 32 bit",
            bytes=unquantised_bytes(shape, settings),
            basis=_describe_unquantised(shape),
        ),
        MemoryPart(
            key="adapter",
            label="Adapter",
            bytes=adapter * settings.adapter_bytes,
            basis=f"{adapter / 1e6:.1f} million numbers at rank {settings.rank} in {settings.adapter_precision}",
        ),
        MemoryPart(
            key="gradients",
            label="Gradients",
            bytes=adapter * settings.adapter_bytes,
            basis="As large as the adapter",
        ),
        MemoryPart(
            key="optimizer",
            label="Optimizer",
            bytes=optimizer_bytes(shape, settings),
            basis=f"Both moments of {settings.optimizer}",
        ),
        MemoryPart(
            key="activations",
            label="Activations",
            bytes=round(peak.activations * correction),
            basis=f"{micro_batch_words(settings)}, {checkpointing.lower()}{measured}",
        ),
        MemoryPart(
            key="loss",
            label="Loss",
            bytes=round(peak.loss * correction),
            basis=_describe_loss(shape, peak),
        ),
        MemoryPart(
            key="workspace",
            label="Workspace",
            bytes=round(peak.workspace * correction),
            basis="A weight matrix, dequantised" if peak.workspace else NOT_AT_PEAK,
        ),
    ]
    slack = round(SLACK[settings.device] * sum(part.bytes for part in parts))
    basis = "CUDA context, kernels and libraries" if settings.device == "cuda" else "The process and its libraries"
    parts.append(MemoryPart(key="context", label="Context", bytes=CONTEXT_BYTES[settings.device], basis=basis))
    parts.append(MemoryPart(key="slack", label="Slack", bytes=slack, basis="What the allocator cannot hand out again"))
    return MemoryEstimate(parts=tuple(parts))


def _describe_unquantised(shape: ModelShape) -> str:
    parts = ["embedding", "output head"] if not shape.tied_embeddings else ["embedding and output head in one"]
    parts += ["experts"] if shape.measured is not None and shape.measured.stacked else []
    parts += ["linear layers of a kind of their own"] if any(not one.four_bit for one in list_linears(shape)) else []
    listed = ", ".join(parts) + " and norms"
    return listed[:1].upper() + listed[1:]


def micro_batch_words(settings: PlanSettings) -> str:
    """How much is computed in one forward and backward pass, as the field says it."""
    return f"Micro-batch of {settings.micro_batch_tokens} tokens"


def checkpointing_words(settings: PlanSettings, layers: int) -> str:
    """On how many layers there is gradient checkpointing, as the field says it."""
    if not settings.checkpointed_layers:
        return "No gradient checkpointing"
    return f"Gradient checkpointing on {settings.checkpointed_layers} of {layers} layers"


def _describe_loss(shape: ModelShape, peak: StepPeak) -> str:
    if not peak.loss:
        return NOT_AT_PEAK
    return f"Logits over {shape.vocab} words of vocabulary, {'all' if shape.whole_logits else 'a chunk'} at a time"


def total_bytes(shape: ModelShape, settings: PlanSettings) -> int:
    """The sum of the bill without its words, for searches."""
    peak, correction = step_peak(shape, settings), settings.correction
    moving = round(peak.activations * correction) + round(peak.loss * correction) + round(peak.workspace * correction)
    taken = fixed_bytes(shape, settings) + moving
    return taken + round(SLACK[settings.device] * taken) + CONTEXT_BYTES[settings.device]


def fixed_bytes(shape: ModelShape, settings: PlanSettings) -> int:
    """What does not depend on micro-batch and checkpointing: weights, adapter, gradients, optimizer. Exact."""
    adapter = count_adapter_numbers(shape, settings) * settings.adapter_bytes
    weights = nf4_bytes(shape) + unquantised_bytes(shape, settings)
    return weights + 2 * adapter + optimizer_bytes(shape, settings)


def nf4_bytes(shape: ModelShape) -> int:
    """Bytes of all quantised weights: packed halves, 8-bit scales, their fp32 scales, the two tables and an offset."""
    return sum(nf4_matrix_bytes(linear.weights) * linear.count for linear in list_linears(shape) if linear.four_bit)


def nf4_matrix_bytes(weights: int) -> int:
    """Bytes of one matrix in NF4 with double quantisation, as bitsandbytes lays it out."""
    scales = -(-weights // NF4_BLOCK)
    second = -(-scales // SECOND_BLOCK)
    return -(-weights // 2) + scales + 4 * second + NF4_TABLE_BYTES + SECOND_TABLE_BYTES + 4


def unquantised_bytes(shape: ModelShape, settings: PlanSettings) -> int:
    """Bytes of embedding, head, norms and biases in the compute format, and of the rotary tables in fp32."""
    moved = settings.offload in ("embeddings", "both") and not shape.tied_embeddings
    if shape.measured is not None:
        away = shape.vocab * shape.hidden * 2 if moved else 0
        return (shape.measured.other_bytes - away) * settings.compute_bytes // 2
    family = family_of(shape)
    embeddings = shape.vocab * shape.hidden * (1 if shape.tied_embeddings or moved else 2)
    scale = 1 if family.embed_scale else 0
    rotary = rotary_tables(shape) * 2 * 4 * ((shape.rotary_dim or shape.head_dim) // 2)
    numbers = embeddings + count_norm_weights(shape) + count_biases(shape) + scale
    return settings.compute_bytes * numbers + rotary


def host_bytes(shape: ModelShape, settings: PlanSettings) -> int:
    """Memory of the computer that offloading takes: the input embeddings, and the inputs of checkpointed layers, pinned."""
    taken = 0
    if settings.offload in ("embeddings", "both") and not shape.tied_embeddings:
        taken += shape.vocab * shape.hidden * settings.compute_bytes
    if settings.offload in ("boundaries", "both"):
        boundary = boundary_bytes(shape, settings) * settings.micro_batch_tokens
        taken += round(boundary * settings.checkpointed_layers)
    return taken


def optimizer_bytes(shape: ModelShape, settings: PlanSettings) -> int:
    """Bytes of both AdamW moments: as wide as the adapter, or one byte each with an fp32 scale per block of 256.

    AdamW also counts its steps, once for each tensor; the 8-bit one has two tables of 256 numbers for all.
    """
    sizes = [
        (numbers, linear.count) for linear in list_adapted(shape, settings) for numbers in tensors_of(linear, settings)
    ]
    if settings.optimizer != "adamw_8bit":
        return sum((2 * settings.adapter_bytes * numbers + 4) * count for numbers, count in sizes)
    total = 2 * 256 * 4
    for numbers, count in sizes:
        small = numbers < MIN_8BIT_WEIGHTS
        total += 2 * (4 * numbers if small else numbers + 4 * -(-numbers // OPTIMIZER_BLOCK)) * count
    return total
