"""Objectives by name, and what supervised fine-tuning is."""

from __future__ import annotations

import pytest
import torch

from qlora_studio.core.errors import StudioError
from qlora_studio.core.example import Example
from qlora_studio.engine.objectives.protocol import RowLosses
from qlora_studio.engine.objectives.registry import OBJECTIVES, find_objective


def test_names_are_unique_and_found():
    names = [objective.name for objective in OBJECTIVES]
    assert len(set(names)) == len(names)
    assert [find_objective(name) for name in names] == list(OBJECTIVES)


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(StudioError, match=r"^There is no objective 'dpo'\. Choose one of: supervised"):
        find_objective("dpo")


def test_supervised_weighs_every_trained_token_alike():
    supervised = find_objective("supervised")
    losses = torch.tensor([6.0, 4.0])
    assert supervised.units(3) == [(0,), (1,), (2,)]
    assert float(supervised.loss(RowLosses((0, 1), losses, torch.tensor([2.0, 3.0]))).summed) == 10.0
    assert supervised.divisor([Example((1, 2, 3), ((1, 3),)), Example((1, 2), ((0, 2),))]) == 2 + 1
    assert supervised.divisor([Example((1, 2), ())]) == 1
