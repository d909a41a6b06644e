"""Two tables: every card for one model, and every known model for one card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.machine import Machine
from qlora_studio.core.plan import GIB, GpuInfo, MemoryPlan, ModelShape
from qlora_studio.planner.fit import make_plan
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES

CARD_SIZES_GIB = (6, 8, 10, 12, 16, 24)
"""Memory of the cards people have, in GiB."""
DESKTOP_BYTES = round(0.4 * GIB)
"""What driver and desktop take of a card before anything runs (performance notes, section 3.3)."""


IMAGINED_MEMORY = 32 * GIB
"""Memory of a computer that is imagined around a card."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: a plan, or why there is none."""

    card: GpuInfo | None
    shape: ModelShape
    plan: MemoryPlan | None
    problem: str = ""


def imagine_machine(size_gib: int) -> Machine:
    """A computer whose card has this size and carries nothing but a desktop, for plans without such a card at hand."""
    total = size_gib * GIB
    card = GpuInfo(
        index=0,
        name=f"a {size_gib} GB card",
        total_bytes=total,
        free_bytes=total - DESKTOP_BYTES,
        compute_capability=(8, 6),
    )
    return Machine(cards=(card,), memory_bytes=IMAGINED_MEMORY, memory_available_bytes=IMAGINED_MEMORY)


def plan_all_cards(
    config: TrainConfig, shape: ModelShape, machine: Machine, lengths: Sequence[int] | None = None
) -> list[Row]:
    """A plan for every usual card and, last, for this machine's processor; a budget in the config is left aside."""
    free = config.replace({"memory.budget_gib": None})
    machines = [*map(imagine_machine, CARD_SIZES_GIB), machine.model_copy(update={"cards": (), "correction": 1.0})]
    return [_row(free, shape, one, lengths) for one in machines]


def plan_all_models(config: TrainConfig, machine: Machine) -> list[Row]:
    """A plan for every model of the reference table on this machine."""
    return [_row(config, shape, machine, None) for shape in REFERENCE_SHAPES.values()]


def _row(config: TrainConfig, shape: ModelShape, machine: Machine, lengths: Sequence[int] | None) -> Row:
    try:
        return Row(machine.card, shape, make_plan(config, shape, machine, lengths))
    except StudioError as error:
        return Row(machine.card, shape, None, str(error))
