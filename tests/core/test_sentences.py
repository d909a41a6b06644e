"""Sentences that page and command line share, whole: before a start, before an export, and after rates were tried."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from qlora_studio.core.bases import FailedBase
from qlora_studio.core.doctor import CUDA_BUILDS, install_torch
from qlora_studio.core.errors import Problem, explain_unwritable
from qlora_studio.core.jobs import RatePoint, RateReport
from qlora_studio.core.measured import _against
from qlora_studio.core.plan import GIB, MIB, MemoryEstimate, MemoryPart, MemoryPlan
from qlora_studio.core.push import default_name, find_destination
from qlora_studio.core.readiness import DiskNeed, ExportReadiness, LeftOut, Readiness, TimeEstimate

PLAN = MemoryPlan(
    device="cpu", budget_bytes=4 * GIB, micro_batch_tokens=256, checkpointed_layers=0, layers=2,
    adapter_precision="fp32", optimizer="adamw",
    estimate=MemoryEstimate(parts=(MemoryPart(key="weights", label="Weights", bytes=2 * GIB),)),
)  # fmt: skip
MINUTES = TimeEstimate(300.0, 100.0, measured=True, basis="measured")
NOTHING = Readiness(
    rows=200, trained_rows=None, left_out=(), cut_rows=0, held_out_rows=None, steps=None, steps_exact=True, time=None,
    plan=None, disk=None, download_bytes=0, blocks=(), over_budget=None, unusual=(),
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "200 rows, not tokenised yet"),
        ({"rows": 1}, "1 row, not tokenised yet"),
        ({"trained_rows": 200}, "200 rows"),
        ({"rows": 1, "trained_rows": 1}, "1 row"),
        ({"rows": 2000, "trained_rows": 1137}, "1,137 of 2,000 rows"),
        ({"left_out": (LeftOut(63, "too long"), LeftOut(1000, "as bad"))}, "200 rows, not tokenised yet, 63 too long, 1,000 as bad"),
        ({"trained_rows": 200, "cut_rows": 3}, "200 rows, 3 truncated"),
        ({"trained_rows": 200, "steps": 1}, "200 rows, 1 step"),
        ({"trained_rows": 200, "steps": 4000}, "200 rows, 4,000 steps"),
        ({"trained_rows": 200, "steps": 40, "steps_exact": False}, "200 rows, about 40 steps"),
        ({"trained_rows": 200, "steps": 0}, "200 rows, 0 steps"),
        ({"trained_rows": 200, "time": MINUTES}, "200 rows, about 5 min"),
        ({"trained_rows": 200, "time": replace(MINUTES, measured=False)}, "200 rows, roughly 5 min"),
        ({"trained_rows": 200, "time": replace(MINUTES, seconds=9)}, "200 rows, under a minute"),
        ({"trained_rows": 200, "plan": PLAN}, "200 rows, 2.0 of 4.0 GiB"),
        ({"trained_rows": 200, "download_bytes": 3 * GIB}, "200 rows, 3.00 GiB to download first"),
    ],
)  # fmt: skip
def test_readiness_says_what_is_known_and_no_more(changes, sentence):
    assert replace(NOTHING, **changes).sentence == sentence


WRONG = Problem("Wrong.")


@pytest.mark.parametrize(
    ("changes", "ready", "anyway"),
    [
        ({}, True, False),
        ({"blocks": (WRONG,)}, False, False),
        ({"over_budget": WRONG}, False, True),
        ({"blocks": (WRONG,), "over_budget": WRONG}, False, False),
    ],
)
def test_only_a_plan_that_does_not_fit_may_be_started_anyway(changes, ready, anyway):
    found = replace(NOTHING, **changes)
    assert (found.ready, found.can_start_anyway) == (ready, anyway)


def test_what_just_fits_on_the_disk_fits():
    assert [DiskNeed(needed, 10).fits for needed in (9, 10, 11)] == [True, True, False]


BASE = FailedBase(name="b", stage="files", message="No base.", hint="Bring one.", where="/b")


@pytest.mark.parametrize(
    ("size", "time", "disk", "sentence"),
    [
        (None, None, None, "pack"),
        (269 * MIB, None, None, "pack, 269 MiB"),
        (None, MINUTES, None, "pack, about 5 min"),
        (None, None, DiskNeed(1, 3 * GIB), "pack, 3.00 GiB free"),
        (0, MINUTES, DiskNeed(1, 3 * GIB), "pack, 0 MiB, about 5 min, 3.00 GiB free"),
    ],
)
def test_an_export_says_what_is_known_and_no_more(size, time, disk, sentence):
    found = ExportReadiness(BASE, "pack", size, time, disk, ())
    assert (found.sentence, found.ready) == (sentence, True)
    assert not replace(found, blocks=(BASE.problem,)).ready


def test_a_base_that_cannot_be_used_says_so_as_a_problem():
    assert BASE.problem == Problem("No base.", "Bring one.", "/b", "model.base")


@pytest.mark.parametrize(
    ("rate", "sentence"),
    [
        (None, "After 8 steps each from the same start no rate is better than the base. Look at the rows, or train more steps."),
        (1e-5, "After 8 steps each from the same start, 1e-05 is the lowest rate that does as well as the best. "
         "It is the lowest that was tried: a lower one may be better still."),
        (1e-4, "After 8 steps each from the same start, 0.0001 is the lowest rate that does as well as the best."),
        (1e-3, "After 8 steps each from the same start, 0.001 is the lowest rate that does as well as the best. "
         "It is the highest that was tried: a higher one may be better still."),
    ],
)  # fmt: skip
def test_rates_that_were_tried_come_to_a_sentence(rate, sentence):
    points = tuple(RatePoint(rate=tried, loss=1.0) for tried in (1e-5, 1e-4, 1e-3))
    assert RateReport(steps=8, points=points, held_out=True, rate=rate).sentence == sentence


FREE = "Free some space and go on where you were."
MOVE = "Set QLORA_STUDIO_HOME to a folder that can be written, or change the rights of this one."


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (OSError(errno.ENOSPC, "x", "/a"), Problem("This cannot be written: the disk is full.", FREE, "/a")),
        (OSError(errno.EDQUOT, "x"), Problem("This cannot be written: your share of the disk is used up.", FREE)),
        (OSError(errno.EACCES, "x", "/a"), Problem("This cannot be written: it may not be written.", MOVE, "/a")),
        (OSError(errno.EPERM, "x", "/a", None, "/b"), Problem("This cannot be written: it may not be written.", MOVE, "/b")),
        (OSError(errno.EROFS, "x", "/a"), Problem("This cannot be written: it lies on a disk that can only be read.", MOVE, "/a")),
    ],
)  # fmt: skip
def test_what_the_disk_refuses_is_said_with_its_path(error, problem):
    assert explain_unwritable(error).problems == (problem,)


def test_any_other_error_of_the_system_is_left_alone():
    assert explain_unwritable(FileNotFoundError(errno.ENOENT, "x", "/a")) is None


def test_torch_is_installed_from_where_its_cuda_builds_lie():
    assert install_torch("2.13.0+cpu") == f"Run: pip install --force-reinstall torch==2.13.0 --index-url {CUDA_BUILDS}."


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        (1000, "as much as"), (1004, "as much as"), (996, "as much as"), (1006, "1% more than"), (994, "1% less than"),
        (1500, "50% more than"), (500, "50% less than"),
    ],
)  # fmt: skip
def test_what_differs_by_less_than_half_a_hundredth_is_as_much(measured, words):
    assert _against(measured, 1000) == words


@pytest.mark.parametrize(
    ("export", "hub", "lmstudio"),
    [
        ("My Run_2!", "my-run_2", "qlora-studio/my-run_2"),
        ("..a b..", "a-b", "qlora-studio/a-b"),
        ("\u4f60", "model", "qlora-studio/model"),
    ],
)
def test_an_export_gets_a_name_that_its_destination_takes(export, hub, lmstudio):
    assert default_name("hub", export) == default_name("ollama", export) == hub
    assert default_name("lmstudio", export) == lmstudio


def test_a_destination_is_found_by_its_name():
    assert [find_destination(name).title for name in ("lmstudio", "ollama", "hub")] == ["LM Studio", "Ollama", "Hub"]
    with pytest.raises(Exception, match=r"There is no destination 'ftp'\. Choose lmstudio, ollama, hub\."):
        find_destination("ftp")
