"""The searches for scales against llama.cpp's, written out here number by number, and small blocks worked out by hand."""

from __future__ import annotations

import pytest
import torch

from qlora_studio.engine.gguf_file.fits import Trials, fit_centred, fit_positive, fit_shifted, inverse

BLOCKS = {
    "around zero": [-0.9, 0.31, 0.02, -0.44, 0.75, 0.13, -0.08, 0.6],
    "above zero": [10.0, 10.7, 11.1, 10.2, 11.9, 10.4, 11.3, 10.9],
    "below zero": [-3.0, -2.5, -7.1, -4.4, -3.3, -6.2, -5.9, -2.2],
    "one large": [0.01, -0.02, 0.03, 9.0, 0.02, -0.01, 0.0, 0.04],
    "alike": [2.5] * 8,
    "nothing": [0.0] * 8,
}
WEIGHTS = [1.0, 0.5, 2.0, 0.25, 1.5, 3.0, 0.1, 0.7]
COARSE, FINE = Trials(15, first=-1.0, step=0.1, count=21), Trials(31, first=-0.9, step=0.05, count=37)


def nearest(value: float, low: float, high: float) -> float:
    return min(max(float(round(value)), low), high)


def shifted(x, w, trials):
    """`make_qkx3_quants` of ggml-quants.c."""
    n, nmax = range(len(x)), trials.levels
    low, high = min(0.0, *x), max(x)
    if high == low:
        return 0.0, -low, [0.0] * len(x)
    sum_w, sum_x = sum(w), sum(a * b for a, b in zip(w, x, strict=True))
    turned = nmax / (high - low)
    scale, least = 1 / turned, low
    codes = [nearest(turned * (value - least), 0, nmax) for value in x]
    best = sum(w[i] * (scale * codes[i] + least - x[i]) ** 2 for i in n)
    for trial in range(trials.count):
        turned = (trials.first + trials.step * trial + nmax) / (high - least)
        found = [nearest(turned * (value - least), 0, nmax) for value in x]
        sum_l, sum_l2 = sum(w[i] * found[i] for i in n), sum(w[i] * found[i] ** 2 for i in n)
        sum_xl = sum(w[i] * x[i] * found[i] for i in n)
        d = sum_w * sum_l2 - sum_l * sum_l
        if d > 0:
            this, minimum = (sum_w * sum_xl - sum_x * sum_l) / d, (sum_l2 * sum_x - sum_l * sum_xl) / d
            if minimum > 0:
                minimum, this = 0.0, sum_xl / sum_l2
            error = sum(w[i] * (this * found[i] + minimum - x[i]) ** 2 for i in n)
            if error < best:
                codes, best, scale, least = found, error, this, minimum
    return scale, -least, codes


def centred(x, w, nmax):
    """`make_qx_quants` of ggml-quants.c."""
    n = range(len(x))
    largest = max(x, key=abs)
    if largest == 0:
        return 0.0, [0.0] * len(x)
    best, scale, codes = -1.0, 0.0, []
    for trial in (0, *range(-9, 0), *range(1, 10)):
        turned = -(nmax + 0.1 * trial) / largest
        found = [nearest(turned * value, -nmax, nmax - 1) for value in x]
        sum_lx, sum_l2 = sum(w[i] * x[i] * found[i] for i in n), sum(w[i] * found[i] ** 2 for i in n)
        if sum_l2 > 0 and sum_lx * sum_lx / sum_l2 > best:
            best, scale, codes = sum_lx * sum_lx / sum_l2, sum_lx / sum_l2, found
    return scale, codes


@pytest.mark.parametrize("trials", [COARSE, FINE])
@pytest.mark.parametrize("name", BLOCKS)
def test_scale_minimum_and_codes_are_llama_cpps(name, trials):
    block = torch.tensor(BLOCKS[name], dtype=torch.float64)
    scale, minimum, codes = fit_shifted(block, torch.tensor(WEIGHTS, dtype=torch.float64), trials)
    wanted = shifted(BLOCKS[name], WEIGHTS, trials)
    assert scale.item() == pytest.approx(wanted[0], abs=1e-12) and minimum.item() == pytest.approx(wanted[1], abs=1e-12)
    assert codes.tolist() == wanted[2] and set(codes.tolist()) <= set(map(float, range(trials.levels + 1)))
    assert minimum.item() >= 0, "a minimum is never above zero"


@pytest.mark.parametrize("levels", [16, 32])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_scale_around_zero_is_llama_cpps(name, levels):
    block = torch.tensor(BLOCKS[name], dtype=torch.float64)
    scale, codes = fit_centred(block, torch.tensor(WEIGHTS, dtype=torch.float64), levels)
    wanted = centred(BLOCKS[name], WEIGHTS, levels)
    if name == "alike":  # every rounding is exact, and which of them wins is chance
        assert (scale * codes).tolist() == pytest.approx(BLOCKS[name])
        return
    assert scale.item() == pytest.approx(wanted[0], abs=1e-12) and codes.tolist() == wanted[1]
    assert -levels <= min(codes.tolist()) and max(codes.tolist()) <= levels - 1


def test_many_blocks_are_fitted_each_for_itself():
    blocks = torch.tensor(list(BLOCKS.values()), dtype=torch.float64).view(2, 3, 8)
    weights = torch.tensor(WEIGHTS, dtype=torch.float64).expand_as(blocks)
    whole = (
        fit_shifted(blocks, weights, COARSE),
        fit_centred(blocks, weights, 16),
        fit_positive(blocks.abs(), weights, 63),
    )
    for row, block in enumerate(BLOCKS.values()):
        one = torch.tensor(block, dtype=torch.float64)
        alone = (
            fit_shifted(one, weights[0, 0], COARSE),
            fit_centred(one, weights[0, 0], 16),
            fit_positive(one.abs(), weights[0, 0], 63),
        )
        for many, single in zip(whole, alone, strict=True):
            for part, expected in zip(many, single, strict=True):
                torch.testing.assert_close(part[row // 3, row % 3], expected)


@pytest.mark.parametrize("scale", [0.25, 3.0])
def test_what_lies_on_a_grid_comes_back_whole(scale):
    codes = torch.tensor([0.0, 15, 3, 7, 9, 1, 15, 0], dtype=torch.float64)
    ones = torch.ones(8, dtype=torch.float64)
    found, minimum, again = fit_shifted(codes * scale - 2, ones, COARSE)
    assert found.item() == pytest.approx(scale) and minimum.item() == pytest.approx(2) and torch.equal(again, codes)
    found, _, again = fit_shifted(codes * scale, ones, COARSE)
    assert found.item() == pytest.approx(scale) and torch.equal(again, codes)
    around = torch.tensor([-16.0, 15, 3, -7, 9, 1, 0, 2], dtype=torch.float64)
    found, again = fit_centred(around * scale, ones, 16)
    assert found.item() == pytest.approx(scale) and torch.equal(again, around)
    positive = torch.tensor([63.0, 0, 31, 5, 17, 60, 2, 1], dtype=torch.float64)
    found, again = fit_positive(positive * scale, ones, 63)
    assert found.item() == pytest.approx(scale) and torch.equal(again, positive)


@pytest.mark.parametrize(
    "values", [[1.0, 2, 3.4], [0.3, 0.9, 0.1], [5.0, 5.1, 4.9], [7.0, 0.4, 0.4], [0.0, 0, 0], [1.0, 0, 0]]
)
@pytest.mark.parametrize("weights", [[1.0, 1, 1], [0.1, 5, 1], [3.0, 0.2, 0.7]])
def test_no_other_code_of_one_number_is_better(values, weights):
    """Of three numbers and seven levels every single change can be looked at."""
    x, w = torch.tensor(values, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64)
    scale, codes = fit_positive(x, w, 7)
    assert set(codes.tolist()) <= set(map(float, range(8)))

    def error(code):
        """Of the best scale for these codes."""
        along, square = float((w * x * code).sum()), float((w * code * code).sum())
        return float((w * x * x).sum()) - (along * along / square if square else 0.0)

    if any(values):
        assert scale.item() == pytest.approx(float((w * x * codes).sum() / (w * codes * codes).sum()))
    else:
        assert (scale.item(), codes.tolist()) == (0.0, [0.0] * 3)
    for place in range(3):
        along = (x * codes * w).sum() - x[place] * codes[place] * w[place]
        square = (codes * codes * w).sum() - codes[place] ** 2 * w[place]
        if along > 0 and square > 0:
            other = codes.clone()
            other[place] = torch.round(x[place] * square / along).clamp(max=7)
            assert error(codes) <= error(other) + 1e-9


def test_the_inverse_of_nothing_is_nothing():
    assert inverse(torch.tensor([2.0, 0, -0.5])).tolist() == [0.5, 0, -2]
