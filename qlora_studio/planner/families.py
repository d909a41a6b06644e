"""What the dense families are made of: which linear layers, which norms, what stays in 16 bit.

Counts are those of the transformers implementations of these families; an architecture that is not listed is measured
by a dry run instead (`ModelShape.measured`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from qlora_studio.core.plan import LinearShape, ModelShape, PlanSettings


@dataclass(frozen=True, slots=True)
class Family:
    """How a family differs from a plain Llama."""

    fused: bool = False
    """Query, key and value are one matrix, gate and up another."""
    norms: int = 2
    """RMS norms over the hidden size in each layer."""
    norm_in_fp32: bool = False
    """The norm multiplies by its weight in fp32 before it returns to the compute format."""
    embed_scale: bool = False
    """The embedding is multiplied by a stored number."""


FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(),
    "phi3": Family(fused=True),
    "gemma3_text": Family(norms=4, norm_in_fp32=True, embed_scale=True),
}
"""Families by `model_type` whose size is known by formula."""


def list_linears(shape: ModelShape) -> tuple[LinearShape, ...]:
    """The linear layers that are adapted, and quantised where they say so: all but the output head."""
    return shape.measured.linears if shape.measured is not None else _linears_by_formula(shape)


@lru_cache(maxsize=64)
def _linears_by_formula(shape: ModelShape) -> tuple[LinearShape, ...]:
    """Kept, because a search for settings asks thousands of times."""
    hidden, queries, keys = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layers, inner = shape.layers, shape.intermediate

    def linear(part: str, name: str, inputs: int, outputs: int, bias: bool = False) -> LinearShape:
        path = f"model.layers.*.{part}.{name}"
        return LinearShape(name=name, inputs=inputs, outputs=outputs, count=layers, bias=bias, path=path)

    output = linear("self_attn", "o_proj", queries, hidden, shape.output_bias)
    down = linear("mlp", "down_proj", inner, hidden, shape.mlp_bias)
    if family_of(shape).fused:
        return (
            linear("self_attn", "qkv_proj", hidden, queries + 2 * keys),
            output,
            linear("mlp", "gate_up_proj", hidden, 2 * inner),
            down,
        )
    return (
        linear("self_attn", "q_proj", hidden, queries, shape.attention_bias),
        linear("self_attn", "k_proj", hidden, keys, shape.attention_bias),
        linear("self_attn", "v_proj", hidden, keys, shape.attention_bias),
        output,
        linear("mlp", "gate_proj", hidden, inner, shape.mlp_bias),
        linear("mlp", "up_proj", hidden, inner, shape.mlp_bias),
        down,
    )


def is_in_mlp(linear: LinearShape) -> bool:
    """Whether this layer is part of a gated MLP."""
    return linear.name in ("gate_proj", "up_proj", "gate_up_proj", "down_proj")


def family_of(shape: ModelShape) -> Family:
    """The family's account; one that is not listed is measured by a dry run, whose figures stand in for it."""
    return FAMILIES.get(shape.family, Family())


def padding_of(shape: ModelShape) -> str | None:
    """Why this model's rows will be padded, as its dry run found; None where they will lie side by side.

    The families that formulas know can all be cut by row (a test loads them).
    """
    return shape.measured.padded_because if shape.measured is not None else None


def rotary_tables(shape: ModelShape) -> int:
    """Sets of rotary positions: Gemma has its own for local layers, the others one for all."""
    both = shape.family == "gemma3_text" and 0 < shape.sliding_layers < shape.layers
    return 2 if both else 1


def count_norm_weights(shape: ModelShape) -> int:
    """Numbers in all norms: those of the layers, the last one, and those of queries and keys."""
    per_layer = family_of(shape).norms * shape.hidden + (2 * shape.head_dim if shape.qk_norm else 0)
    return shape.layers * per_layer + shape.hidden


def count_biases(shape: ModelShape) -> int:
    """Numbers in the biases of the quantised layers; they stay in the compute format."""
    return sum(linear.outputs * linear.count for linear in list_linears(shape) if linear.bias)


def count_weights(shape: ModelShape) -> int:
    """Numbers in the matrices that every token goes through, without embedding and head."""
    stacked = shape.measured.stacked if shape.measured is not None else ()
    experts = round(sum(one.numbers * one.count * one.active for one in stacked))
    return sum(linear.weights * linear.count for linear in list_linears(shape)) + experts


def count_recomputed(shape: ModelShape) -> int:
    """Those of them that gradient checkpointing goes through once more: it stops in front of the MLP's last product.

    Not where a norm stands behind it, as in Gemma, nor in families that no formula knows.
    """
    whole = count_weights(shape)
    if shape.measured is not None or family_of(shape).norms != 2:
        return whole
    return whole - sum(linear.weights * linear.count for linear in list_linears(shape) if linear.name == "down_proj")


def list_adapted(shape: ModelShape, settings: PlanSettings) -> tuple[LinearShape, ...]:
    """Those of the linear layers that get an adapter by these settings, as often as they get one."""
    share = settings.adapted_layers
    return tuple(
        linear if share is None else replace(linear, count=linear.count * share // shape.layers)
        for linear in list_linears(shape)
        if not settings.adapted or linear.name in settings.adapted
    )


def count_adapter_weights(shape: ModelShape, rank: int) -> int:
    """Numbers in a plain adapter on all linear layers."""
    return count_adapter_numbers(shape, PlanSettings(rank=rank))


def count_adapter_numbers(shape: ModelShape, settings: PlanSettings) -> int:
    """Numbers in the adapter: A is (rank, inputs), B (outputs, rank) for every adapted layer; DoRA has (outputs,) more."""
    return sum(
        numbers * linear.count for linear in list_adapted(shape, settings) for numbers in tensors_of(linear, settings)
    )


def tensors_of(linear: LinearShape, settings: PlanSettings) -> tuple[int, ...]:
    """Numbers in each tensor of the adapter on one such layer."""
    pair = (settings.rank * linear.inputs, settings.rank * linear.outputs)
    return (*pair, linear.outputs) if settings.dora else pair
