"""Where nothing fits: which of the person's choices would close the gap, alone or together. Nothing else is advised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from qlora_studio.core.errors import StudioError
from qlora_studio.core.machine import Machine
from qlora_studio.core.words import gib, gib_of
from qlora_studio.planner.budget import find_budget
from qlora_studio.planner.estimate import host_bytes
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES
from qlora_studio.planner.search import NEVER, Situation, can_fit, smallest_bytes, smallest_settings

RANKS = (512, 256, 128, 64, 32, 16, 8)
"""Ranks that are advised; below 8 little is learned."""
LENGTHS = (8192, 4096, 3072, 2048, 1536, 1024, 768, 512, 384, 256)
"""Max sequence lengths that are advised; shorter ones hold too little."""


@dataclass(frozen=True, slots=True)
class Change:
    """Other values for a field or two, in words."""

    words: str
    values: tuple[tuple[str, Any], ...]


def find_changes(situation: Situation, machine: Machine) -> tuple[str, ...]:
    """What is missing, then a sentence for each change that closes the gap, the cheapest for the result first.

    Where no single one does, the smallest combination that does. Then what others hold, and a model that fits.
    """
    needed = smallest_bytes(situation)
    missing = needed - situation.budget_bytes
    sentences = [_what_is_missing(situation, needed)]
    advice = list(_advise(situation, machine)) + list(_close_programs(situation, machine, missing))
    if not advice:
        sentences.append("No other setting closes that gap with this model.")
    sentences += advice
    if (smaller := _smaller_model(situation)) is not None:
        sentences.append(smaller)
    return tuple(sentences)


def _what_is_missing(situation: Situation, needed: int) -> str:
    budget = situation.budget_bytes
    if needed >= NEVER:
        taken = host_bytes(situation.shape, smallest_settings(situation))
        may = gib(situation.host_budget_bytes)
        return f"Offloading would take {gib(taken)} of the computer's memory, and {may} may be taken."
    return f"{gib(needed - budget)} are missing: the smallest settings need {gib(needed)}, the budget is {gib(budget)}."


def _advise(situation: Situation, machine: Machine) -> Iterator[str]:
    """Every single change that fits; else the smallest combination, each part as mild as it may be."""
    ladders = list(_ladders(situation))
    singles = [fitting for ladder in ladders if (fitting := _mildest(situation, machine, [], ladder)) is not None]
    for change in singles:
        yield f"{_capital(change.words)} fits: {_takes(situation, machine, [change])}."
    if singles:
        return
    for size in range(2, len(ladders) + 1):
        for chosen in combinations(ladders, size):
            if _fits(situation, machine, [ladder[-1] for ladder in chosen]):
                together = _soften(situation, machine, chosen)
                named = ", ".join(change.words for change in together[:-1])
                yield f"Together these fit: {named} and {together[-1].words}: {_takes(situation, machine, together)}."
                return


def _ladders(situation: Situation) -> Iterator[Sequence[Change]]:
    """What could be changed, each from the mildest value to the strongest; first what costs nothing of the result."""
    config, memory = situation.config, situation.config.memory
    if memory.budget_gib is not None:
        yield [_change(f"what is free instead of a budget of {memory.budget_gib:g} GiB", "memory.budget_gib", None)]
    if memory.keep_free_gib:
        yield [_change(f"keeping nothing free instead of {memory.keep_free_gib:g} GiB", "memory.keep_free_gib", 0.0)]
    if memory.gradient_checkpointing != "auto":
        words = f"gradient checkpointing auto instead of {memory.gradient_checkpointing}"
        yield [_change(words, "memory.gradient_checkpointing", "auto")]
    if memory.micro_batch_tokens is not None and memory.micro_batch_tokens > situation.longest_row:
        words = f"a micro-batch of {situation.longest_row} tokens instead of {memory.micro_batch_tokens}"
        yield [_change(words, "memory.micro_batch_tokens", None)]
    if memory.offload != "auto" and situation.device == "cuda":
        yield [_change(f"offload auto instead of {memory.offload}", "memory.offload", "auto")]
    if config.optim.optimizer == "adamw":
        yield [_change("optimizer adamw_8bit instead of adamw", "optim.optimizer", "adamw_8bit")]
    if memory.adapter_precision == "fp32":
        yield [_change("adapter precision auto instead of fp32", "memory.adapter_precision", "auto")]
    if config.lora.dropout:
        yield [_change(f"dropout 0 instead of {config.lora.dropout:g}", "lora.dropout", 0.0)]
    ranks = [rank for rank in RANKS if rank < config.lora.rank]
    if ranks:
        yield [_change(f"rank {rank} instead of {config.lora.rank}", "lora.rank", rank) for rank in ranks]
    lengths = [tokens for tokens in LENGTHS if tokens < situation.longest_row]
    if lengths:
        before = situation.longest_row
        yield [
            _change(f"max sequence length {tokens} instead of {before}", "data.max_length", tokens)
            for tokens in lengths
        ]


def _change(words: str, field: str, value: object) -> Change:
    return Change(words, ((field, value),))


def _mildest(
    situation: Situation, machine: Machine, others: Sequence[Change], ladder: Sequence[Change]
) -> Change | None:
    """The first change of a ladder that fits together with others; None where not even the strongest does."""
    return next((change for change in ladder if _fits(situation, machine, [*others, change])), None)


def _soften(situation: Situation, machine: Machine, ladders: Sequence[Sequence[Change]]) -> list[Change]:
    """A fitting combination with each part as mild as the others allow; what costs the result most is softened first."""
    together = [ladder[-1] for ladder in ladders]
    for place in reversed(range(len(ladders))):
        others = together[:place] + together[place + 1 :]
        together[place] = _mildest(situation, machine, others, ladders[place]) or together[place]
    return together


def _fits(situation: Situation, machine: Machine, changes: Sequence[Change]) -> bool:
    after = _changed(situation, machine, changes)
    return after is not None and can_fit(after)


def _takes(situation: Situation, machine: Machine, changes: Sequence[Change]) -> str:
    after = _changed(situation, machine, changes)
    assert after is not None, "only what fits is said"
    return gib_of(smallest_bytes(after), after.budget_bytes)


def _changed(situation: Situation, machine: Machine, changes: Sequence[Change]) -> Situation | None:
    """The situation with these fields changed; None where they allow no plan at all."""
    values: Mapping[str, Any] = {field: value for change in changes for field, value in change.values}
    row = min(values.get("data.max_length", situation.longest_row), situation.longest_row)
    try:
        config = situation.config.replace(values)
        budget = find_budget(config, machine)[0]
    except StudioError:
        return None
    return replace(situation, config=config, longest_row=row, budget_bytes=budget)


def _close_programs(situation: Situation, machine: Machine, missing: int) -> Iterator[str]:
    """A program whose memory would be enough, where the budget is what is free."""
    card, config = machine.card, situation.config
    wanted = config.memory.budget_gib
    if card is None or (wanted is not None and wanted * 2**30 <= card.free_bytes):
        return
    for process in card.processes:
        if process.used_bytes and process.used_bytes >= missing:
            yield f"Closing {process.name} (process {process.pid}) frees {gib(process.used_bytes)}, which is enough."


def _smaller_model(situation: Situation) -> str | None:
    """The largest well-known model that fits with the same settings."""
    for shape in reversed(REFERENCE_SHAPES.values()):
        other = replace(situation, shape=shape, longest_row=min(situation.longest_row, shape.max_positions))
        if (needed := smallest_bytes(other)) <= situation.budget_bytes and needed < smallest_bytes(situation):
            return f"A smaller model fits with these settings: {shape.name}, {gib_of(needed, situation.budget_bytes)}."
    return None


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
