"""The two tables: which machines are imagined, and what stands in a row for which there is no plan."""

import pytest

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.machine import Machine
from qlora_studio.core.plan import GIB, GpuInfo
from qlora_studio.planner import tables
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES
from qlora_studio.planner.tables import Row, imagine_machine, plan_all_cards, plan_all_models

SMOL = REFERENCE_SHAPES["SmolLM2-135M"]
CARD = GpuInfo(index=0, name="mine", total_bytes=8 * GIB, free_bytes=7 * GIB)
MACHINE = Machine(cards=(CARD,), memory_bytes=16 * GIB, memory_available_bytes=9 * GIB, correction=1.25)


@pytest.fixture
def asked(monkeypatch):
    """Who was planned for; what has no card gets no plan."""
    calls = []

    def make_plan(config, shape, machine, lengths=None):
        calls.append((config, shape.name, machine, lengths))
        if machine.card is None:
            raise StudioError("There is no card.", "Buy one.")
        return f"plan for {machine.card.name}"

    monkeypatch.setattr(tables, "make_plan", make_plan)
    return calls


def test_a_machine_that_is_imagined_has_a_card_with_a_desktop_and_32_gib():
    machine = imagine_machine(12)
    assert machine == Machine(
        cards=(
            GpuInfo(
                index=0, name="a 12 GB card", total_bytes=12 * GIB, free_bytes=12 * GIB - round(0.4 * GIB),
                compute_capability=(8, 6),
            ),
        ),
        memory_bytes=32 * GIB, memory_available_bytes=32 * GIB,
    )  # fmt: skip


def test_all_cards_are_planned_for_without_a_budget_and_last_this_processor_without_its_correction(asked):
    config = TrainConfig().replace({"memory.budget_gib": 3.0, "lora.rank": 8})
    rows = plan_all_cards(config, SMOL, MACHINE, [5, 6])
    sizes = (6, 8, 10, 12, 16, 24)
    assert rows == [
        *(Row(imagine_machine(size).card, SMOL, f"plan for a {size} GB card") for size in sizes),
        Row(None, SMOL, None, "There is no card. Buy one."),
    ]
    free = config.replace({"memory.budget_gib": None})
    assert [one[:2] + one[3:] for one in asked] == [(free, "SmolLM2-135M", [5, 6])] * 7
    assert asked[-1][2] == MACHINE.model_copy(update={"cards": (), "correction": 1.0})


def test_all_models_are_planned_for_on_this_machine_with_its_budget(asked):
    config = TrainConfig().replace({"memory.budget_gib": 3.0})
    rows = plan_all_models(config, MACHINE)
    assert rows == [Row(CARD, shape, "plan for mine") for shape in REFERENCE_SHAPES.values()]
    assert asked == [(config, name, MACHINE, None) for name in REFERENCE_SHAPES]
