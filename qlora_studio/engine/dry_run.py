"""What an architecture takes, found without weights and without a card: a small copy of it runs on fake tensors.

Fake tensors have shapes and storages but no numbers, so a forward and a backward pass cost a second, and every storage
that would be there can be counted. Copies with two and with four layers give what one layer adds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AutoConfig, PreTrainedConfig

from qlora_studio.core.errors import StudioError
from qlora_studio.core.plan import MeasuredShape, Moment, StepCosts
from qlora_studio.engine.accelerator.formats import DTYPES
from qlora_studio.engine.architecture import adapted_layers, check_adapter, count_model, quantised_names
from qlora_studio.engine.kernels.checkpointing import checkpoint_layers, decoder_layers
from qlora_studio.engine.kernels.documents import Documents
from qlora_studio.engine.kernels.norm import replace_norms
from qlora_studio.engine.kernels.replace import replace_gated_mlps, tile_mlps
from qlora_studio.engine.kernels.rotary import replace_rotations
from qlora_studio.engine.planned_packing import find_padding
from qlora_studio.engine.stand_in_kernels import Mark, Marks, attention_kernel, mlp_kernel, norm_kernel
from qlora_studio.engine.stand_ins import (
    ATTENTION,
    RANK,
    AdaptedLinear,
    GradientKept,
    StorageCount,
    attention_of,
    build,
    shorten,
    without_numbers,
)

FEW, MANY, MOST = (64, 128), (512, 1024), (8192, 16384)
"""Tokens of the runs: few show fixed bytes, very many show the moments that only count then."""
SQUARES = (256, 512, 1024)
"""Tokens of the runs where attention holds something for every pair of tokens of a row."""
ROWS = 2
"""Rows of those runs: products of several rows copy what a single one's only look at."""


@dataclass(frozen=True, slots=True)
class Run:
    """Bytes at the turns of one forward and backward pass."""

    held: int
    """Between forward and backward."""
    end_peak: int
    """Most before the backward pass reaches the last layer."""
    kept: int
    """When it reaches the last layer, the gradient there included."""
    layer_peak: int
    """Most from then on, without what kernels hold in blocks."""
    end_marks: tuple[Mark, ...]
    """Where kernels work in blocks before the backward pass reaches the last layer."""
    layer_marks: tuple[Mark, ...]
    """Where they do from then on."""


def measure_folder(folder: Path) -> MeasuredShape:
    """A dry run of the model whose `config.json` lies in a folder. Raises a StudioError where it cannot be made."""
    try:
        return measure(AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True))
    except StudioError:
        raise
    except Exception as error:  # code of any architecture runs here, on tensors that it was never tried with
        first = (str(error).strip().splitlines() or [""])[0][:300].rstrip(". ")
        reason = f"{type(error).__name__}: {first}" if first else type(error).__name__
        raise StudioError(
            f"This architecture cannot be measured: {reason}.",
            "Choose another model; a newer transformers may know this one.",
            where=str(folder / "config.json"),
        ) from error


def measure(config: PreTrainedConfig, formats: Sequence[str] = ("bf16", "fp32")) -> MeasuredShape:
    """Sizes of the whole model and costs of its layers in these number formats.

    Raises a StudioError where the model has no linear layer to adapt, no layer that can be checkpointed, or layers
    that an adapter would not reach as it should.
    """
    check_adapter(config)
    found = count_model(config)
    with without_numbers():
        if not found.linears or not decoder_layers(build(shorten(config, 2), torch.bfloat16).get_decoder()):
            raise StudioError(
                f"A {config.model_type} model has no layers that this version can adapt.", field="model_type"
            )
        padded = find_padding(config)
        layout = Layout(packed=padded is None)
        costs = {compute: _measure_costs(config, DTYPES[compute], layout) for compute in formats}
        tiles = _has_gated_mlps(config) and "bf16" in formats
        tiled = {"bf16": _measure_costs(config, torch.bfloat16, replace(layout, tiled=True))} if tiles else {}
    return MeasuredShape(
        linears=found.linears,
        other_bytes=found.other_bytes,
        stacked=found.stacked,
        eager=attends_in_squares(config),
        padded_because=padded,
        costs=costs,
        tiled=tiled,
        rank=RANK,
    )


@dataclass(frozen=True, slots=True)
class Layout:
    """How a step's tokens are laid out and gone through."""

    packed: bool
    tiled: bool = False
    """Whether gated MLPs are computed in tiles."""


def _measure_costs(config: PreTrainedConfig, dtype: torch.dtype, layout: Layout) -> StepCosts:
    """Costs of a step from copies with two and four layers, none or all of them checkpointed.

    With a fused kernel for attention everything grows in straight lines, and two lengths show a line; without one it
    grows with the square of a row as well, and three do.
    """
    lengths = SQUARES if attends_in_squares(config) else MANY
    groups = (SQUARES,) if lengths == SQUARES else (FEW, MANY, MOST)
    runs = {
        (layers, checkpointed, tokens): _run(config, Copy(dtype, layers, checkpointed, tokens, layout))
        for layers, checkpointed in ((2, False), (4, False), (2, True), (4, True))
        for tokens in {*lengths, *(tokens for group in groups for tokens in group)}
        if (layers == 2 and checkpointed) or tokens in lengths
    }
    hidden, high = config.get_text_config().hidden_size * dtype.itemsize, lengths[-1]
    boundary = (runs[4, True, high].held - runs[2, True, high].held) / 2 / high
    kept = {n: (runs[4, False, n].held - runs[2, False, n].held) / 2 for n in lengths}
    start = {n: runs[2, True, n].kept - hidden * n - 2 * boundary * n for n in lengths}
    ending = {n: runs[2, True, n].held - 2 * boundary * n - start[n] for n in lengths}
    first = 2 * kept[high] + start[high] - (runs[2, False, high].kept - hidden * high)
    saved, around = _fit(kept), _fit(start)
    below = {
        n: boundary * n + _value(around, n) + _value(saved, n) for n in {*lengths, *(n for g in groups for n in g)}
    }
    top = {n: runs[2, True, n].layer_peak - below[n] for n in below}
    layer = [_fit({n: top[n] for n in group}) for group in groups]
    layer += _fit_marks({n: (runs[2, True, n].layer_marks, below[n]) for n in lengths})
    end = _fit({n: runs[2, True, n].end_peak - runs[2, True, n].held for n in lengths})
    ends = _fit_marks({n: (runs[2, True, n].end_marks, runs[2, True, n].held) for n in lengths})
    return StepCosts(
        boundary=boundary,
        saved=saved.per_token,
        saved_fixed=saved.fixed,
        first_saved_less=first / high,
        around=around.per_token,
        ending=ending[high] / high,
        layer=tuple(dict.fromkeys(layer)),
        end=ends[-1] if ends else end,
        saved_pairs=saved.per_pair,
        around_pairs=around.per_pair,
    )


def attends_in_squares(config: PreTrainedConfig) -> bool:
    """Whether attention holds something for every pair of tokens: without a fused kernel, and with dropout in it."""
    text = config.get_text_config()
    drops = any(getattr(text, name, None) for name in ("attention_dropout", "attn_pdrop", "attn_dropout"))
    return attention_of(config) != ATTENTION or drops


def _fit(points: Mapping[int, float]) -> Moment:
    """The line through two points, or the parabola through three, by number of tokens of a run."""
    (x1, y1), (x2, y2), *third = points.items()
    slope = (y2 - y1) / (x2 - x1)
    if not third:
        return Moment(slope, round(y1 - slope * x1))
    x3, y3 = third[0]
    square = ((y3 - y2) / (x3 - x2) - slope) / (x3 - x1)
    linear = slope - square * (x1 + x2)
    return Moment(linear, round(y1 - linear * x1 - square * x1 * x1), ROWS * square)


def _fit_marks(runs: Mapping[int, tuple[Sequence[Mark], float]]) -> list[Moment]:
    """A moment for each mark that the runs have in common, on top of the bytes that stand beside them."""
    found = []
    for marks in zip(*(marks for marks, _ in runs.values()), strict=True):
        points = {n: mark.held - below for mark, (n, (_, below)) in zip(marks, runs.items(), strict=True)}
        (tokens, *_), one = runs, marks[0]
        found.append(
            replace(
                _fit(points),
                norm_width=one.norm_numbers / tokens,
                norm_fused=one.norm_fused,
                inner_width=one.inner_numbers / tokens,
                tile_width=one.tile_numbers / tokens,
                attention=one.attention,
            )
        )
    return found


def _value(moment: Moment, tokens: int) -> float:
    """Bytes at one number of tokens of a run."""
    return moment.per_token * tokens + moment.per_pair * tokens * tokens / ROWS + moment.fixed


@dataclass(frozen=True, slots=True)
class Copy:
    """A small copy of a model, and what goes through it."""

    dtype: torch.dtype
    layers: int
    checkpointed: bool
    tokens: int
    layout: Layout


def _build_adapted(config: PreTrainedConfig, layers: int, dtype: torch.dtype) -> Any:
    """A copy with so many layers whose linear layers have adapters."""
    model = build(shorten(config, layers), dtype)
    quantised = quantised_names(model)
    for name, module in adapted_layers(model).items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, AdaptedLinear(module, name in quantised))
    return model


def _has_gated_mlps(config: PreTrainedConfig) -> bool:
    """Whether the engine's kernel would take any of its MLPs, and could do so in tiles."""
    return bool(replace_gated_mlps(_build_adapted(config, 2, torch.bfloat16), mlp_kernel(Marks())))


def _run(config: PreTrainedConfig, one: Copy) -> Run:
    """One forward and backward pass of a copy, counted."""
    marks = Marks()
    AttentionInterface.register(ATTENTION, attention_kernel(marks))
    model = _prepare_copy(config, one, marks)
    parameters = [*model.parameters()]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    count = StorageCount([*parameters, *[p.grad for p in parameters if p.grad is not None], *model.buffers()])
    marks.held = lambda: count.now
    inputs = _inputs(config, one)
    before: list[tuple[Mark, ...]] = []

    def reach(_: torch.Tensor) -> None:
        if count.turn is None:
            count.turning = True
            before.append(marks.take())

    def watch(_: nn.Module, __: Any, output: Any) -> None:
        (output[0] if isinstance(output, tuple) else output).register_hook(reach)

    decoder_layers(model.get_decoder())[-1].register_forward_hook(watch)
    with count:
        keep_gradient: Callable[..., torch.Tensor] = GradientKept.apply
        loss = keep_gradient(model.get_decoder()(**inputs, use_cache=False).last_hidden_state)
        held = count.now - one.tokens * config.get_text_config().hidden_size * one.dtype.itemsize
        count.most = count.now
        loss.backward()
    assert count.turn is not None
    return Run(
        held=held,
        end_peak=count.turn[1],
        kept=count.turn[0],
        layer_peak=count.most,
        end_marks=before[0],
        layer_marks=tuple(mark for mark in marks.take() if not (mark.attention and attends_in_squares(config))),
    )


def _prepare_copy(config: PreTrainedConfig, one: Copy, marks: Marks) -> Any:
    """The copy with kernels that leave their marks, tiled and checkpointed as it shall be."""
    model = _build_adapted(config, one.layers, one.dtype)
    replace_norms(model, norm_kernel(marks))
    replace_rotations(model)
    replace_gated_mlps(model, mlp_kernel(marks))
    tile_mlps(model, one.layout.tiled)
    checkpoint_layers(model.get_decoder(), one.layers if one.checkpointed else 0)
    return model


def _inputs(config: PreTrainedConfig, one: Copy) -> dict[str, Any]:
    """A micro-batch of nothing: (rows, tokens a row), packed into one where the model can be."""
    rows = ROWS if attends_in_squares(config) else 1
    inputs: dict[str, Any] = {"input_ids": torch.zeros(rows, one.tokens // rows, dtype=torch.long)}
    if one.layout.packed:
        inputs |= {"position_ids": torch.zeros(1, one.tokens, dtype=torch.long)}
        inputs |= {"documents": Documents(((0, one.tokens),))}
    return inputs
