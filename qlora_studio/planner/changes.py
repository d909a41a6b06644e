"""Where nothing fits: which of the person's choices to change, to what, and what that saves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from qlora_studio.core.plan import GpuInfo
from qlora_studio.core.words import gib
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES
from qlora_studio.planner.search import Situation, find_longest_context, smallest_bytes

RANKS = (512, 256, 128, 64, 32, 16, 8, 4)
LENGTHS = (8192, 4096, 3072, 2048, 1536, 1024, 768, 512, 384, 256)
SHORTEST_USEFUL_ROW = 256
WORTH_SAYING = 16 << 20
"""A change that saves less than this is not worth the sentence."""


def find_changes(situation: Situation, gpu: GpuInfo | None = None) -> tuple[str, ...]:
    """One sentence for each change that helps, the cheapest for the result first; the last names what fits instead."""
    before = smallest_bytes(situation)
    missing = before - situation.budget_bytes
    budget = gib(situation.budget_bytes)
    sentences = [f"{gib(missing)} are missing: the smallest settings need {gib(before)} of {budget}."]
    together, said, enough = situation, 0, False
    for words, change in _candidates(situation):
        after = _changed(situation, change)
        saved = before - smallest_bytes(after)
        if saved < WORTH_SAYING:
            continue
        fits = smallest_bytes(after) <= situation.budget_bytes
        sentences.append(f"{words} saves {gib(saved)}{' and fits' if fits else ''}.")
        together, said, enough = _changed(together, change), said + 1, enough or fits
    if said > 1 and not enough and smallest_bytes(together) <= situation.budget_bytes:
        sentences.append("All of these together fit.")
    sentences += _free_memory(situation, gpu, missing)
    if (smaller := _smaller_model(situation)) is not None:
        sentences.append(smaller)
    return tuple(sentences)


def _candidates(situation: Situation) -> Iterator[tuple[str, dict[str, Any]]]:
    """What could be changed, in words and as fields: first what costs nothing but time, then what costs quality."""
    config = situation.config
    memory = config.memory
    if memory.gradient_checkpointing != "auto":
        yield f"checkpointing {memory.gradient_checkpointing} -> auto", {"memory.gradient_checkpointing": "auto"}
    micro = memory.micro_batch_tokens
    if micro is not None and micro > situation.longest_row:
        yield f"micro-batch {micro} -> {situation.longest_row} tokens", {"memory.micro_batch_tokens": None}
    if config.optim.optimizer == "adamw":
        yield "optimizer adamw -> adamw_8bit", {"optim.optimizer": "adamw_8bit"}
    if memory.adapter_precision == "fp32":
        yield "adapter precision fp32 -> bf16", {"memory.adapter_precision": "bf16"}
    if config.lora.dropout:
        yield f"dropout {config.lora.dropout:g} -> 0", {"lora.dropout": 0.0}
    if (rank := _best_rank(situation)) is not None:
        yield f"rank {config.lora.rank} -> {rank}", {"lora.rank": rank}
    if (tokens := _best_length(situation)) is not None:
        yield f"longest row {situation.longest_row} -> {tokens} tokens", {"data.max_length": tokens}


def _changed(situation: Situation, change: dict[str, Any]) -> Situation:
    """The situation with these fields of the config changed."""
    row = change.get("data.max_length", situation.longest_row)
    return replace(situation, config=situation.config.replace(change), longest_row=min(row, situation.longest_row))


def _best_rank(situation: Situation) -> int | None:
    """The largest usual rank below the chosen one that fits by itself, else the smallest worth having."""
    lower = [rank for rank in RANKS if rank < situation.config.lora.rank]
    for rank in lower:
        if smallest_bytes(_changed(situation, {"lora.rank": rank})) <= situation.budget_bytes:
            return rank
    return max(min(lower, default=0), 8) if lower and situation.config.lora.rank > 8 else None


def _best_length(situation: Situation) -> int | None:
    """The longest usual row below the present one that fits by itself, else the shortest worth having."""
    if situation.longest_row <= SHORTEST_USEFUL_ROW or situation.config.memory.micro_batch_tokens is not None:
        return None
    longest = find_longest_context(situation) or 0
    fitting = [tokens for tokens in LENGTHS if tokens <= longest]
    return max(fitting, default=SHORTEST_USEFUL_ROW)


def _free_memory(situation: Situation, gpu: GpuInfo | None, missing: int) -> Iterator[str]:
    """What others hold, or what the person keeps back, where it would be enough."""
    keep = situation.config.memory.keep_free_gib
    if keep:
        yield f"{keep:g} GiB are kept free for the desktop; keeping less makes room."
    for process in gpu.processes if gpu else ():
        if process.used_bytes and process.used_bytes >= WORTH_SAYING:
            enough = " and would be enough" if process.used_bytes >= missing else ""
            held = gib(process.used_bytes)
            yield f"{process.name} (process {process.pid}) holds {held}; closing it makes room{enough}."


def _smaller_model(situation: Situation) -> str | None:
    """The largest well-known model that fits with the same settings."""
    for shape in reversed(REFERENCE_SHAPES.values()):
        other = replace(situation, shape=shape, longest_row=min(situation.longest_row, shape.max_positions))
        if (needed := smallest_bytes(other)) <= situation.budget_bytes and needed < smallest_bytes(situation):
            return f"A smaller model fits with these settings: {shape.name} needs {gib(needed)}."
    return None
