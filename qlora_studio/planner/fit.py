"""The memory plan: the largest useful settings inside the budget, with the reason for each in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.machine import Machine
from qlora_studio.core.plan import MemoryPlan, ModelShape, PlanSettings
from qlora_studio.core.words import gib
from qlora_studio.planner.activations import MLP_TILE
from qlora_studio.planner.budget import choose_compute, cut_by_row, find_budget, find_host_budget, repeats_kv
from qlora_studio.planner.card import find_card_problem, find_choice_problem
from qlora_studio.planner.changes import find_changes
from qlora_studio.planner.estimate import checkpointing_words, estimate, host_bytes, micro_batch_words, total_bytes
from qlora_studio.planner.families import padding_of
from qlora_studio.planner.limits import find_target_problem
from qlora_studio.planner.search import (
    Situation,
    choose_settings,
    find_largest_rank,
    find_longest_context,
    settings_for,
    smallest_settings,
)

OFFLOADED = {
    "embeddings": "Input embeddings are",
    "boundaries": "Inputs of checkpointed layers are",
    "both": "Input embeddings and inputs of checkpointed layers are",
}


def make_plan(
    config: TrainConfig, shape: ModelShape, machine: Machine, lengths: Sequence[int] | None = None
) -> MemoryPlan:
    """The fastest settings that fit the machine's card, or its memory where it has none. Arithmetic only.

    `lengths` are the rows' real lengths in tokens; without them every row counts as long as the config allows. The
    effective batch is never touched. Where nothing fits, the plan has the smallest settings and says what to change.
    Raises a StudioError where no plan could ever hold: the torch that is installed cannot use the card, the budget is
    less than a process takes, or the model's family was never measured.
    """
    if (problem := find_choice_problem(config, machine) or find_card_problem(machine)) is not None:
        raise StudioError.of([problem])
    if not shape.exact and shape.measured is None:
        raise StudioError(
            f"The family '{shape.family}' is not known by formula, and nothing has measured it yet.",
            "Look the model up first.",
            field="model.base",
        )
    if (problem := find_target_problem(config.lora, shape)) is not None:
        raise StudioError.of([problem])
    budget, why_budget = find_budget(config, machine)
    longest = min(max(lengths), config.data.max_length) if lengths else config.data.max_length
    compute = choose_compute(config, shape, machine)
    situation = Situation(
        shape=shape,
        config=config,
        device="cpu" if machine.card is None else "cuda",
        compute=compute,
        budget_bytes=budget,
        longest_row=min(longest, shape.max_positions),
        correction=machine.correction,
        repeats_kv=repeats_kv(shape, machine, compute),
        cut_by_row=cut_by_row(shape, machine, compute),
        host_budget_bytes=find_host_budget(machine),
    )
    chosen = choose_settings(situation)
    settings = chosen or smallest_settings(situation)
    return MemoryPlan(
        device=situation.device,
        budget_bytes=budget,
        layers=shape.layers,
        host_budget_bytes=situation.host_budget_bytes,
        **_figures(shape, settings),
        reasons=(why_budget, *_reasons(situation, settings, known_lengths=bool(lengths))) if chosen else (why_budget,),
        changes=() if chosen else find_changes(situation, machine),
        longest_context=find_longest_context(situation),
        largest_rank=find_largest_rank(situation),
    )


def plan_again(plan: MemoryPlan, shape: ModelShape, settings: PlanSettings, reason: str = "") -> MemoryPlan:
    """The plan of the same run with other settings: its bill is made again; budget and what would fit stay."""
    reasons = (*plan.reasons, reason) if reason else plan.reasons
    return plan.model_copy(update={**_figures(shape, settings), "reasons": reasons})


def _figures(shape: ModelShape, settings: PlanSettings) -> dict[str, Any]:
    """What of a plan follows from shape and settings."""
    return {
        "estimate": estimate(shape, settings),
        "micro_batch_tokens": settings.micro_batch_tokens,
        "checkpointed_layers": settings.checkpointed_layers,
        "adapter_precision": settings.adapter_precision,
        "optimizer": settings.optimizer,
        "offload": settings.offload,
        "tiled_mlp": settings.tiled_mlp,
        "host_bytes": host_bytes(shape, settings),
        "settings": settings,
    }


def _reasons(situation: Situation, settings: PlanSettings, *, known_lengths: bool) -> Iterator[str]:
    """Why each setting is what it is, a sentence each."""
    row = "the longest row of the data" if known_lengths else "the longest row allowed"
    yield _why_micro_batch(situation, settings, row)
    yield _why_layout(situation)
    yield _why_checkpointing(situation, settings)
    if situation.config.memory.adapter_precision != "auto":
        yield f"Adapter in {settings.adapter_precision}: your setting."
    elif situation.compute == "fp16":
        yield "Adapter in fp32: gradients that fp16 scales have no kernel in bf16."
    elif settings.adapter_precision == "fp32":
        yield "Adapter in fp32: it fits, and small updates are not rounded away."
    else:
        yield "Adapter in bf16: in fp32 nothing fits."
    if settings.offload != "none":
        whose = (
            "your setting" if situation.config.memory.offload != "auto" else "with everything on the card nothing fits"
        )
        taken = gib(host_bytes(situation.shape, settings))
        yield f"{OFFLOADED[settings.offload]} offloaded to the computer's memory, {taken} of it: {whose}."
    if settings.tiled_mlp:
        yield f"MLPs are computed in tiles of {MLP_TILE} tokens: with all tokens at once nothing fits."
    if situation.repeats_kv:
        yield "Keys and values are repeated for every head: this card has no attention kernel for grouped queries."
    if situation.correction != 1:
        yield f"Activations are planned {situation.correction:.2f} times the formula, as earlier runs measured here."


def _why_micro_batch(situation: Situation, settings: PlanSettings, row: str) -> str:
    tokens, batch = settings.micro_batch_tokens, situation.config.optim.batch_tokens
    micro_batch = micro_batch_words(settings)
    if situation.config.memory.micro_batch_tokens is not None:
        return f"{micro_batch}: your setting."
    if tokens == situation.longest_row:
        return f"{micro_batch}: {row}; more does not fit or is not faster."
    if tokens == batch:
        return f"{micro_batch}: the whole effective batch."
    return f"{micro_batch}: the fastest that fits; the effective batch stays {batch} tokens."


def _why_layout(situation: Situation) -> str:
    if (reason := padding_of(situation.shape)) is not None:
        return f"Rows are padded to the longest of their micro-batch: {reason}."
    return "Rows are packed: they lie side by side without padding, and each attends to itself alone."


def _why_checkpointing(situation: Situation, settings: PlanSettings) -> str:
    checkpointed, checkpointing = settings.checkpointed_layers, checkpointing_words(settings, situation.shape.layers)
    if situation.config.memory.gradient_checkpointing != "auto":
        return f"{checkpointing}: your setting."
    if not checkpointed:
        return f"{checkpointing}: everything fits, and nothing is recomputed."
    tokens, precision, offload = settings.micro_batch_tokens, settings.adapter_precision, settings.offload
    fewer = settings_for(situation, tokens, checkpointed - 1, precision, offload, tiled_mlp=settings.tiled_mlp)
    over = total_bytes(situation.shape, fewer) - situation.budget_bytes
    return f"{checkpointing}: with one less, {gib(over)} would be missing."
