"""The objectives by name. A new one is one file beside this one and one line here."""

from __future__ import annotations

from qlora_studio.core.errors import StudioError
from qlora_studio.engine.objectives.protocol import Objective
from qlora_studio.engine.objectives.supervised import Supervised

OBJECTIVES: tuple[Objective, ...] = (Supervised(),)


def find_objective(name: str) -> Objective:
    """The objective of this name. Raises a StudioError where there is none."""
    for objective in OBJECTIVES:
        if objective.name == name:
            return objective
    names = ", ".join(objective.name for objective in OBJECTIVES)
    raise StudioError(f"There is no objective '{name}'.", f"Choose one of: {names}.")
