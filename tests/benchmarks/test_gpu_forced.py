"""The verdict on a run that ran out of memory: rounding passes, faults do not."""

import pytest

from benchmarks.gpu_forced import difference, judge

ROOMY = {"losses": [2.0, 1.5], "norms": [1.0, 1.0]}
CHANGES = [{"words": "a micro-batch of 512 instead of 1024 tokens"}]
FORCED = {"losses": [2.0002, 1.5], "norms": [1.01, 1.0], "changes": CHANGES, "bound": 1e-3}
REPLAYED = {"losses": [2.0002, 1.5], "norms": [1.01, 1.0]}
CUT = {"bf16": 2e-3, "fp32": 1e-7}


def test_what_a_cut_rounds_otherwise_is_no_fault():
    cells = judge(ROOMY, FORCED, REPLAYED, CUT)
    assert cells[:5] == ["2 of 2", "1", "a micro-batch of 512 instead of 1024 tokens", "0.0e+00", "0.0e+00"]
    assert cells[5:] == ["1.0e-04", "2.0e-03", "1.0e-07", "1.0e-03", "yes"]


@pytest.mark.parametrize(
    ("forced", "cut"),
    [
        (FORCED | {"losses": [2.01, 1.5]}, CUT),
        (FORCED | {"norms": [2.02, 1.0]}, CUT),
        (FORCED | {"losses": [2.0002]}, CUT),
        (FORCED | {"changes": []}, CUT),
        (FORCED | {"losses": [2.0002, float("nan")]}, CUT),
        (FORCED, {"bf16": 2e-3, "fp32": 2e-3}),
    ],
    ids=["retried otherwise", "gradient twice", "a step less", "had room", "not a number", "fault of the cut"],
)
def test_a_fault_is_none_of_rounding(forced, cut):
    assert judge(ROOMY, forced, REPLAYED, cut)[-1] == "no"


def test_curves_differ_by_their_worst_step():
    assert difference([1.0, 2.2], [1.0, 2.0]) == pytest.approx(0.1)
