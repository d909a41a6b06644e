"""Whether torch can use a card: both sides of each limit, and what is said beyond it."""

import pytest

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.machine import Machine, TorchBuild
from qlora_studio.core.plan import GpuInfo
from qlora_studio.planner.card import (
    find_capability_problem,
    find_card_problem,
    find_choice_problem,
    find_driver_problem,
)

CARD = GpuInfo(index=0, name="RTX", total_bytes=8, free_bytes=7, uuid="GPU-1", driver="580.10")
INSTEAD = "To train on the processor instead, set CUDA_VISIBLE_DEVICES to -1."


def build(cuda):
    return TorchBuild(version="2.9", cuda=cuda)


@pytest.mark.parametrize(
    ("cuda", "driver", "needed"),
    [
        ("13.0", "580.10", None), ("13.0", "579.99", 580), ("12.6", "525", None), ("12.6", "524.9", 525),
        ("13.0", "", None), ("13.0", "unknown", None), ("11.8", "400.1", None), ("", "1.0", None), ("x.1", "1.0", None),
    ],
)  # fmt: skip
def test_a_driver_is_too_old_below_the_first_branch_of_its_cuda(cuda, driver, needed):
    found = find_driver_problem(CARD.model_copy(update={"driver": driver}), build(cuda))
    assert (found is None) == (needed is None)
    if found is not None:
        assert found.message == f"Driver {driver} is too old for torch 2.9, which is built for CUDA {cuda}."
        assert found.hint == f"Install NVIDIA driver {needed} or later. {INSTEAD}"


@pytest.mark.parametrize(
    ("cuda", "has", "wants"),
    [
        ("13.0", (7, 5), None), ("13.0", (7, 4), "the 4-bit kernels under CUDA 13.0 want 7.5"),
        ("12.6", (6, 0), None), ("12.6", (5, 2), "the 4-bit kernels under CUDA 12.6 want 6.0"),
        (None, (6, 0), None), (None, (5, 2), "4-bit kernels want 6.0"), ("11.8", (3, 0), None), ("13.0", None, None),
    ],
)  # fmt: skip
def test_a_card_is_too_old_below_what_the_kernels_want(cuda, has, wants):
    found = find_capability_problem(
        CARD.model_copy(update={"compute_capability": has}), build(cuda) if cuda is not None else None
    )
    if wants is None:
        assert found is None
        return
    assert found.message == f"RTX has compute capability {has[0]}.{has[1]}, and {wants} or later."
    assert found.hint == f"Use a newer card. {INSTEAD}"


def test_what_speaks_against_a_card_is_asked_only_where_there_are_card_and_torch():
    old = CARD.model_copy(update={"driver": "1.0", "compute_capability": (3, 0)})
    for machine in (Machine(), Machine(cards=(old,)), Machine(torch=build("13.0"))):
        assert find_card_problem(machine) is None
    assert find_card_problem(Machine(cards=(CARD,), torch=build("13.0"))) is None
    assert find_card_problem(Machine(cards=(old,), torch=build("13.0"))).message.startswith("Driver 1.0 is too old")
    older = CARD.model_copy(update={"compute_capability": (3, 0)})
    assert find_card_problem(Machine(cards=(older,), torch=build("13.0"))).message.startswith("RTX has compute")
    assert find_card_problem(Machine(cards=(CARD,), torch=build(""))).message == (
        "torch 2.9 is built for processors only, but this computer has RTX."
    )


def test_a_card_that_a_person_chose_and_is_not_there_is_said_with_those_that_are():
    two = (CARD, CARD.model_copy(update={"index": 1, "name": "GTX", "uuid": "GPU-2"}))

    def problem(named, *cards):
        return find_choice_problem(TrainConfig().replace({"memory.card": named}), Machine(cards=cards))

    assert problem(None) is problem("0", *two) is problem("GPU-1", *two) is None
    assert problem("GPU-2", *two).message == "There is no card 'GPU-2'.", "the card of a run stands first"
    assert problem("GPU-2", *two).hint == "This computer has: 0 (RTX), 1 (GTX). Leave it empty for the first."
    assert (problem("0").hint, problem("0").field) == (
        "This computer has: none. Leave it empty for the first.", "memory.card",
    )  # fmt: skip
