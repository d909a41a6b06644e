"""How ready a run or an export is, in a sentence, as far as each part of it is known."""

from __future__ import annotations

import pytest

from qlora_studio.core.errors import Problem
from qlora_studio.core.plan import GIB, MemoryEstimate, MemoryPart, MemoryPlan
from qlora_studio.core.readiness import (
    DataFacts,
    DiskNeed,
    ExportFacts,
    ExportReadiness,
    LeftOut,
    Readiness,
    TimeEstimate,
)

PLAN = MemoryPlan(
    device="cpu", budget_bytes=4 * GIB, micro_batch_tokens=1, checkpointed_layers=0, layers=1, adapter_precision="fp32",
    optimizer="adamw", estimate=MemoryEstimate(parts=(MemoryPart(key="a", label="A", bytes=GIB),)),
)  # fmt: skip


def run(**changes) -> Readiness:
    nothing = {
        "rows": 200, "trained_rows": None, "left_out": (), "cut_rows": 0, "held_out_rows": None, "steps": None,
        "steps_exact": True, "time": None, "plan": None, "disk": None, "download_bytes": 0, "blocks": (),
        "over_budget": None, "unusual": (),
    }  # fmt: skip
    return Readiness(**nothing | changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "200 rows, not tokenised yet"),
        ({"rows": 1}, "1 row, not tokenised yet"),
        ({"trained_rows": 200}, "200 rows"),
        ({"rows": 1, "trained_rows": 1, "steps": 1}, "1 row, 1 step"),
        ({"rows": 2000, "trained_rows": 0}, "0 of 2,000 rows"),
        ({"trained_rows": 137, "left_out": (LeftOut(63, "too long"),), "cut_rows": 1200, "steps": 40}, "137 of 200 rows, 63 too long, 1,200 truncated, 40 steps"),
        ({"steps": 4000, "steps_exact": False, "plan": PLAN}, "200 rows, not tokenised yet, about 4,000 steps, 1.0 of 4.0 GiB"),
        ({"time": TimeEstimate(300, 9.0, True, ""), "download_bytes": GIB}, "200 rows, not tokenised yet, about 5 min, 1.00 GiB to download first"),
        ({"time": TimeEstimate(300, 9.0, False, "")}, "200 rows, not tokenised yet, roughly 5 min"),
        ({"time": TimeEstimate(30, 9.0, False, "")}, "200 rows, not tokenised yet, under a minute"),
    ],
)  # fmt: skip
def test_what_a_run_will_do_is_said_as_far_as_it_is_known(changes, sentence):
    assert run(**changes).sentence == sentence


def test_a_run_is_ready_where_nothing_stands_in_its_way_and_may_start_anyway_where_only_memory_does():
    block, over = Problem("No rows."), Problem("Too large.")
    found = [
        (one.ready, one.can_start_anyway)
        for one in (run(), run(over_budget=over), run(blocks=(block,)), run(blocks=(block,), over_budget=over))
    ]
    assert found == [(True, False), (False, True), (False, False), (False, False)]
    assert (run().chosen, run().limits) == ({}, ())


def test_what_is_written_fits_until_it_is_larger_than_what_is_free():
    assert DiskNeed(5, 5).fits and not DiskNeed(6, 5).fits


def test_nothing_is_taken_for_granted():
    assert DataFacts() == DataFacts(0, None, ())
    assert ExportFacts("adapter", None, 0) == ExportFacts("adapter", None, 0, 0, 0, 0, 0, 1, False, 0, None)


def test_an_export_is_said_as_far_as_it_is_known():
    bare = ExportReadiness(base=None, kind="adapter", result_bytes=None, time=None, disk=None, blocks=())
    assert bare.ready and bare.sentence == "adapter"
    whole = ExportReadiness(
        base=None, kind="merged model", result_bytes=269 << 20, time=TimeEstimate(30, 0, True, ""),
        disk=DiskNeed(1, 2 * GIB), blocks=(Problem("No."),),
    )  # fmt: skip
    assert not whole.ready and whole.sentence == "merged model, 269 MiB, under a minute, 2.00 GiB free"
