"""Whether rows of this model may lie side by side in one sequence: tried when it is loaded, not read from a list.

The law: what stands in one row changes nothing of another. So the program changes a row and looks at its neighbour, and
looks at a row alone and beside another. A model that does not keep it has its rows padded, and says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from qlora_studio.core.example import Example
from qlora_studio.engine.accelerator.attention import has_varlen
from qlora_studio.engine.batches import Layout
from qlora_studio.engine.kernels.attention import REPEATED_HEADS, layer_configs
from qlora_studio.engine.kernels.documents import DOCUMENTS, register_documents
from qlora_studio.engine.oom import is_out_of_memory

LEAK = 1e-3
"""Relative difference of a row's hidden states above which its neighbour has a part in them; without one there is none."""
ALONE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Relative difference between a row alone and packed that other kernels for the same mathematics may make."""
RANDOM = "it leaves something out at random by itself"
UNCUT = "its attention has no fused kernel that could be cut by row"
CUTTABLE = ("full_attention", "sliding_attention")


def find_layout(decoder: Any, head: torch.Tensor) -> tuple[Layout, str | None]:
    """How rows are laid out for a model, and why they are padded where they are.

    Where rows are packed the model's attention is cut by row from here on.
    """
    padded = Layout(head.device)
    before = decoder.config._attn_implementation
    if (reason := _find_hindrance(decoder.config)) is not None:
        return padded, reason
    packed = Layout(
        head.device, packed=True, varlen=_has_varlen(decoder.config, head), repeats=before == REPEATED_HEADS
    )
    register_documents()
    first, other, second = ([number % head.shape[0] for number in numbers] for numbers in ROWS)
    alone, again = (_states(decoder, padded, [second])[-1] for _ in range(2))
    if _relative(alone, again) > LEAK:
        return padded, RANDOM
    attend_by(decoder, DOCUMENTS)
    try:
        packed_states = _states(decoder, packed, [first, second])
        beside_other = _states(decoder, packed, [other, second])[-1]
        reason = _find_leak(packed_states[-1], beside_other, alone)
    except (TypeError, ValueError, RuntimeError, KeyError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        reason = explain_padding(error)
    if reason is None:
        return packed, None
    attend_by(decoder, before)
    return padded, reason


ROWS = ((5, 17, 29, 41, 53), (7, 71, 3, 101, 13), (19, 31, 43, 2, 11, 23, 37))
"""The rows that are tried: one, another in its place, and the neighbour of both."""


def _find_hindrance(config: Any) -> str | None:
    """What rules packing out before anything is computed."""
    if config._attn_implementation not in ("sdpa", REPEATED_HEADS, DOCUMENTS):
        return UNCUT
    return find_uncut_layers(config)


def find_uncut_layers(config: Any) -> str | None:
    """The layers of a decoder's config that know no rows, in words; None where there are none."""
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - set(CUTTABLE):
        return f"it has layers that are not cut by row ({', '.join(sorted(kinds - set(CUTTABLE)))})"
    return None


def explain_padding(error: Exception) -> str:
    """Why rows are padded where a model stumbles over being told where they end."""
    return f"its layers cannot be told where rows end ({type(error).__name__})"


def _has_varlen(config: Any, head: torch.Tensor) -> bool:
    """Whether this model's rows can be cut by the kernel itself where it lies."""
    widths = [
        getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads
        for layer in layer_configs(config)
    ]
    return has_varlen(head.device, head.dtype, max(widths))


@torch.no_grad()
def _states(decoder: Any, layout: Layout, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """The hidden states of each row, (length, width)."""
    examples = [Example(tuple(row), ()) for row in rows]
    batch = layout.collate(examples, range(len(rows)))
    hidden = decoder(**batch.inputs, use_cache=False).last_hidden_state.flatten(0, 1)
    if batch.documents is not None:
        check_windows(decoder.config, batch.documents.windows)
    return [hidden[start:end] for start, end in batch.spans]


def check_windows(config: Any, windows: Sequence[int | None]) -> None:
    """Raises ValueError where local layers do not say their window: without a mask they would see whole rows."""
    kinds = getattr(config, "layer_types", None)
    local = kinds.count("sliding_attention") if kinds else 0
    given = sum(window is not None for window in windows)
    if len(windows) != config.num_hidden_layers or given < local:
        raise ValueError(f"{given} of {local} local layers said their window")


def _find_leak(first: torch.Tensor, other: torch.Tensor, alone: torch.Tensor) -> str | None:
    """What is wrong with a row that is beside one, beside another, and alone."""
    if _relative(first, other) > LEAK:
        return "a row would see the one in front of it"
    if _relative(first, alone) > ALONE.get(alone.dtype, LEAK):
        return "a row would not be computed as it is alone"
    return None


def _relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.float() - other.float()).norm() / other.float().norm())


def attend_by(decoder: Any, name: str) -> None:
    """Every attention layer of the model under this name from here on."""
    for module in decoder.modules():
        if hasattr(getattr(module, "config", None), "_attn_implementation"):
            module.config._attn_implementation = name
