"""Which settings fit a budget, and which of those are fastest. Arithmetic over `total_bytes`; words are in `fit`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Literal

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.plan import ModelShape, PlanSettings
from qlora_studio.planner.activations import MLP_TILE
from qlora_studio.planner.estimate import host_bytes, total_bytes
from qlora_studio.planner.families import count_recomputed, count_weights, padding_of

MOST_TOKENS = {"cuda": 4096, "cpu": 1024}
"""Largest micro-batch worth having: beyond it dequantising the weights no longer shows in the time."""
STEPS = (64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
"""Micro-batches that are tried, in tokens."""
DEQUANTISE_TOKENS = 155
"""Dequantising the weights costs as much time as so many tokens (RTX 4090: 7 % of a step of 2,048)."""
LARGEST_RANK = 1024
"""The largest rank a config allows."""

NEVER = 1 << 60
"""Bytes that no card has."""

Offload = Literal["none", "boundaries", "embeddings", "both"]


@dataclass(frozen=True, slots=True)
class Situation:
    """Everything that a plan may not change."""

    shape: ModelShape
    config: TrainConfig
    device: Literal["cuda", "cpu"]
    compute: Literal["bf16", "fp16", "fp32"]
    budget_bytes: int
    longest_row: int
    correction: float = 1.0
    repeats_kv: bool = False
    """Whether the card has no attention kernel for grouped queries."""
    cut_by_row: bool = False
    """Whether no kernel of the card cuts packed attention between rows."""
    host_budget_bytes: int = 1 << 62
    """Memory of the computer that offloading may take."""


def choose_settings(situation: Situation) -> PlanSettings | None:
    """The fastest settings that fit; None where nothing fits.

    What the result feels goes last: first everything on the card, then the MLP in tiles, then what may wait outside, then
    bf16 adapters.
    """
    for precision in adapter_choices(situation):
        for offload, tiled in product(offload_choices(situation), tile_choices(situation)):
            fitting = []
            for tokens in micro_batch_choices(situation):
                for layers in checkpoint_choices(situation):
                    settings = settings_for(situation, tokens, layers, precision, offload, tiled_mlp=tiled)
                    if takes(situation, settings) <= situation.budget_bytes:
                        fitting.append(settings)
                        break
            if fitting:
                return min(fitting, key=lambda settings: step_time(settings, situation.shape))
    return None


def smallest_settings(situation: Situation) -> PlanSettings:
    """The settings that take least, whether they fit or not."""
    tokens = micro_batch_choices(situation)[0]
    precision = adapter_choices(situation)[-1]
    for offload in reversed(offload_choices(situation)):
        every = (
            least_checkpointing(situation, tokens, precision, offload, tiled_mlp=tiled)
            for tiled in tile_choices(situation)
        )
        smallest = min(every, key=lambda settings: takes(situation, settings))
        if takes(situation, smallest) < NEVER:
            break
    return smallest


def least_checkpointing(
    situation: Situation, tokens: int, precision: Literal["fp32", "bf16"], offload: Offload, *, tiled_mlp: bool
) -> PlanSettings:
    """Of these settings with every possible count of checkpointed layers, those that take least.

    Between the ends the bill is the greatest of several straight lines over the count: it falls, then rises, so the lowest
    point is found by halving. At none, one and all of the layers some of what the lines are made of is not there.
    """

    def with_layers(layers: int) -> PlanSettings:
        return settings_for(situation, tokens, layers, precision, offload, tiled_mlp=tiled_mlp)

    @cache
    def bytes_with(layers: int) -> int:
        return takes(situation, with_layers(layers))

    choices = tuple(checkpoint_choices(situation))
    if bytes_with(choices[-1]) >= NEVER:
        choices = tuple(layers for layers in choices if bytes_with(layers) < NEVER) or choices
    tried = {*choices[:2], choices[-1]}
    low, high = 2, len(choices) - 2
    while low < high:
        middle = (low + high) // 2
        if bytes_with(choices[middle]) <= bytes_with(choices[middle + 1]):
            high = middle
        else:
            low = middle + 1
    if low == high:
        tried.add(choices[low])
    return with_layers(min(sorted(tried), key=bytes_with))


def smallest_bytes(situation: Situation) -> int:
    """What the smallest settings take."""
    return takes(situation, smallest_settings(situation))


def can_fit(situation: Situation) -> bool:
    """Whether any settings fit."""
    return fits_checkpointed(situation) or smallest_bytes(situation) <= situation.budget_bytes


def fits_checkpointed(situation: Situation) -> bool:
    """Whether it fits with every layer checkpointed that may be, however much is offloaded: mostly that takes least."""
    tokens, precision = micro_batch_choices(situation)[0], adapter_choices(situation)[-1]
    layers = tuple(checkpoint_choices(situation))[-1]
    return any(
        takes(situation, settings_for(situation, tokens, layers, precision, offload, tiled_mlp=tiled))
        <= situation.budget_bytes
        for offload, tiled in product(reversed(offload_choices(situation)), reversed(tile_choices(situation)))
    )


def takes(situation: Situation, settings: PlanSettings) -> int:
    """Bytes of the card that settings take; more than any card has where they offload more than the computer can take."""
    over = settings.offload != "none" and host_bytes(situation.shape, settings) > situation.host_budget_bytes
    return total_bytes(situation.shape, settings) + (NEVER if over else 0)


def step_time(settings: PlanSettings, shape: ModelShape) -> float:
    """Time per token relative to no checkpointing and endless micro-batches.

    A checkpointed layer costs up to half as much again (6 instead of 4 multiplications per weight that is gone through
    once more); each micro-batch dequantises the weights anew.
    """
    share = settings.checkpointed_layers / shape.layers * count_recomputed(shape) / count_weights(shape)
    return (1 + share / 2) * (1 + DEQUANTISE_TOKENS / settings.micro_batch_tokens)


def micro_batch_choices(situation: Situation) -> list[int]:
    """Micro-batches to try in tokens, smallest first: at least the longest row, at most the effective batch."""
    forced = situation.config.memory.micro_batch_tokens
    if forced is not None:
        return [max(forced, situation.longest_row)]
    most = max(situation.longest_row, min(MOST_TOKENS[situation.device], situation.config.optim.batch_tokens))
    return sorted({situation.longest_row, most, *(step for step in STEPS if situation.longest_row < step < most)})


def checkpoint_choices(situation: Situation) -> Iterable[int]:
    """On how many layers there may be gradient checkpointing, fewest first."""
    layers = situation.shape.layers
    fixed = {"none": 0, "half": -(-layers // 2), "full": layers}
    choice = situation.config.memory.gradient_checkpointing
    return range(layers + 1) if choice == "auto" else (fixed[choice],)


def adapter_choices(situation: Situation) -> tuple[Literal["fp32", "bf16"], ...]:
    """Adapter formats to try, the safer first; fp32 alone under fp16, whose scaled gradients CUDA cannot hold in bf16.

    `_amp_foreach_non_finite_check_and_unscale_` is not implemented for bf16 there (pytorch issue 127176).
    """
    choice = situation.config.memory.adapter_precision
    if choice != "auto":
        return (choice,)
    return ("fp32",) if situation.compute == "fp16" else ("fp32", "bf16")


def offload_choices(situation: Situation) -> tuple[Offload, ...]:
    """What may wait in the computer's memory, cheapest first: embeddings cost next to nothing, layer inputs a copy."""
    choice = situation.config.memory.offload
    if situation.device == "cpu":
        return ("none",)  # it is all the same memory
    if choice != "auto":
        return (choice,)
    return ("none", "boundaries") if situation.shape.tied_embeddings else ("none", "embeddings", "boundaries", "both")


def tile_choices(situation: Situation) -> tuple[bool, ...]:
    """Whether the MLP may be computed in tiles: worth it for rows of more than one, where the engine's kernel is used."""
    lora = situation.config.lora
    measured = situation.shape.measured
    known = measured is None or ("fp32" if situation.compute == "fp32" else "bf16") in measured.tiled
    able = known and not lora.dropout and not lora.use_dora
    return (False, True) if able and situation.longest_row > MLP_TILE else (False,)


def settings_for(
    situation: Situation,
    tokens: int,
    layers: int,
    precision: Literal["fp32", "bf16"],
    offload: Offload = "none",
    *,
    tiled_mlp: bool = False,
) -> PlanSettings:
    """These choices together with what the situation fixes."""
    lora = situation.config.lora
    return PlanSettings(
        device=situation.device,
        compute=situation.compute,
        rank=lora.stored_rank,
        dropout=lora.dropout > 0,
        dora=lora.use_dora,
        adapted=lora.module_names,
        adapted_layers=len(lora.layers_of(situation.shape.layers)) if lora.layers.strip() else None,
        micro_batch_tokens=tokens,
        row_tokens=situation.longest_row,
        packed=padding_of(situation.shape) is None,
        cut_by_row=situation.cut_by_row,
        checkpointed_layers=layers,
        adapter_precision=precision,
        optimizer=situation.config.optim.optimizer,
        correction=situation.correction,
        repeats_kv=situation.repeats_kv,
        offload=offload,
        tiled_mlp=tiled_mlp,
    )


def find_longest_context(situation: Situation) -> int | None:
    """Tokens of the longest row that would fit with everything else as it is; None where not even one token does."""

    def with_row(tokens: int) -> Situation:
        return replace(situation, longest_row=tokens)

    return _find_largest(with_row, situation.shape.max_positions)


def find_largest_rank(situation: Situation) -> int | None:
    """The largest rank that would fit with everything else as it is; None where not even rank 1 does."""

    def with_rank(rank: int) -> Situation:
        return replace(situation, config=situation.config.replace({"lora.rank": rank}))

    return _find_largest(with_rank, LARGEST_RANK)


def _find_largest(situation_with: Callable[[int], Situation], most: int) -> int | None:
    """The largest number from 1 to `most` whose situation fits; None where none does.

    The settings that mostly take least are asked first: trying all of them costs many times as much, and adds little or
    nothing to the number.
    """
    fitting, step = _largest(lambda number: fits_checkpointed(situation_with(number)), 0, most), 1
    while fitting < most:
        further = min(fitting + step, most)
        if not can_fit(situation_with(further)):
            return _largest(lambda number: can_fit(situation_with(number)), fitting, further - 1) or None
        fitting, step = further, 4 * step
    return fitting


def _largest(fits: Callable[[int], bool], known: int, most: int) -> int:
    """The largest whole number for which a condition holds that only ever turns false; `known` is one for which it does."""
    low, high = known, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
