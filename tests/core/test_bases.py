"""What is known of a base: little, until somebody looks."""

from __future__ import annotations

from qlora_studio.core.bases import BaseRef, FailedBase, ResolvedBase, UnresolvedBase
from qlora_studio.core.errors import Problem
from tests.core.frozen import stays
from tests.core.test_plan_values import SIZES

SAID = {"name": "m", "shape": SIZES, "weights": "on_disk"}


def test_a_base_of_which_only_the_shape_is_known_promises_nothing():
    assert ResolvedBase(**SAID).model_dump(exclude=set(SAID)) == {
        "state": "resolved", "weights_problem": "", "weights_bytes": None, "revision": None, "licence": "",
        "has_template": None, "unmergeable": (), "limits": (),
    }  # fmt: skip
    assert BaseRef("m").revision is None


def test_a_base_that_failed_is_a_problem_of_the_field_that_names_it():
    failed = FailedBase(name="m", stage="hub", message="Gone.")
    assert failed.problem == Problem("Gone.", "", "", "model.base")
    assert all(map(stays, (failed, ResolvedBase(**SAID), UnresolvedBase(name="m", needs="A look."))))
