"""Which card a worker is given."""

from __future__ import annotations

import pytest

from qlora_studio.core.plan import GpuInfo
from qlora_studio.home import Home
from qlora_studio.studio import jobs
from qlora_studio.studio.jobs import Jobs


def cards(count: int) -> list[GpuInfo]:
    return [
        GpuInfo(index=index, name="RTX 3060", total_bytes=1, free_bytes=1, uuid=f"GPU-{index}")
        for index in range(count)
    ]


@pytest.mark.parametrize(
    ("count", "named", "given"),
    [(0, None, None), (1, None, None), (2, None, "GPU-0"), (2, "1", "GPU-1"), (2, "GPU-1", "GPU-1")],
    ids=["no card", "no choice", "the first", "by number", "by UUID"],
)
def test_of_several_cards_a_worker_is_given_one_by_uuid(tmp_path, monkeypatch, count, named, given):
    """The driver counts them in another order than CUDA does, so a number would mean another card."""
    monkeypatch.setattr(jobs, "read_cards", lambda: cards(count))
    assert Jobs(Home(tmp_path)).card_of(named) == given
