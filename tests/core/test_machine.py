"""A computer of which nothing was read: no card, no memory, one core."""

from __future__ import annotations

from qlora_studio.core.machine import Machine, Speed, TorchBuild
from qlora_studio.core.plan import GpuInfo
from tests.core.frozen import stays


def test_what_was_not_read_of_a_computer_is_nothing():
    assert Machine().model_dump() == {
        "cards": (), "memory_bytes": 0, "memory_available_bytes": 0, "cores": 1, "cpu_bf16": False,
        "disk_free_bytes": 0, "system": "linux", "torch": None, "correction": 1.0, "speeds": (),
    }  # fmt: skip
    assert TorchBuild(version="2.9").cuda == ""


def test_a_run_takes_the_first_card_and_computes_on_the_processor_without_one():
    first, second = (GpuInfo(index=n, name=f"card {n}", total_bytes=8, free_bytes=7) for n in (1, 0))
    assert Machine(cards=(first, second)).card is first and Machine().card is None


def test_what_was_read_stays():
    assert all(map(stays, (Machine(), TorchBuild(version="2.9"), Speed(model="m", weights=1, flops_per_second=2.0))))
