"""Two tables: every card for one model, and every known model for one card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.plan import GIB, GpuInfo, MemoryPlan, ModelShape
from qlora_studio.planner.fit import make_plan
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES

CARD_SIZES_GIB = (6, 8, 10, 12, 16, 24)
"""Memory of the cards people have, in GiB."""
DESKTOP_BYTES = round(0.4 * GIB)
"""What driver and desktop take of a card before anything runs (performance notes, section 3.3)."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table."""

    card: GpuInfo | None
    shape: ModelShape
    plan: MemoryPlan


def imagine_card(size_gib: int) -> GpuInfo:
    """A card of this size with nothing on it but a desktop, for plans without such a card at hand."""
    total = size_gib * GIB
    return GpuInfo(
        index=0,
        name=f"a {size_gib} GB card",
        total_bytes=total,
        free_bytes=total - DESKTOP_BYTES,
        compute_capability=(8, 6),
    )


def plan_all_cards(config: TrainConfig, shape: ModelShape, lengths: Sequence[int] | None = None) -> list[Row]:
    """A plan for every usual card and, last, for the CPU; a budget in the config is left aside."""
    free = config.replace({"memory.budget_gib": None})
    cards: list[GpuInfo | None] = [*map(imagine_card, CARD_SIZES_GIB), None]
    return [Row(card, shape, make_plan(free, shape, card, lengths)) for card in cards]


def plan_all_models(config: TrainConfig, gpu: GpuInfo | None, correction: float = 1.0) -> list[Row]:
    """A plan for every model of the reference table on this card, or on the CPU."""
    return [Row(gpu, shape, make_plan(config, shape, gpu, None, correction)) for shape in REFERENCE_SHAPES.values()]
