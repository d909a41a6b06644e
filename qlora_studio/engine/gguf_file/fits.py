"""The searches for scales behind GGUF's blocks of few bits, vectorised over blocks.

They follow llama.cpp's own (ggml-quants.c, MIT): a block's scale and minimum are the weighted least-squares fit over a few
trial roundings.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Trials:
    """Which roundings are tried: levels + first, one step further each time."""

    levels: int
    """The largest code."""
    first: float
    step: float
    count: int


def fit_shifted(
    x: torch.Tensor, weights: torch.Tensor, trials: Trials
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scale and minimum of each block (…, n) and its codes, x ~ scale·code - minimum with codes 0 to `levels`.

    llama.cpp's `make_qkx2_quants` and `make_qkx3_quants`, which differ in their trials.
    """
    levels = trials.levels
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True)
    sum_w, sum_x = weights.sum(-1, keepdim=True), (weights * x).sum(-1, keepdim=True)

    def error(scale: torch.Tensor, minimum: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        return (weights * (scale * codes + minimum - x).square()).sum(-1, keepdim=True)

    scale, minimum = (high - low) / levels, low
    rounding, shift = inverse(scale), low  # of the best codes
    best = error(scale, minimum, torch.round((x - low) * rounding).clamp(0, levels))
    for trial in range(trials.count):
        tried = (trials.first + trials.step * trial + levels) * inverse(high - minimum)  # from the best minimum so far
        codes = torch.round((x - minimum) * tried).clamp(0, levels)
        sum_l = (weights * codes).sum(-1, keepdim=True)
        sum_l2 = (weights * codes * codes).sum(-1, keepdim=True)
        sum_xl = (weights * x * codes).sum(-1, keepdim=True)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        new_scale = (sum_w * sum_xl - sum_x * sum_l) * inverse(determinant)
        new_minimum = (sum_l2 * sum_x - sum_l * sum_xl) * inverse(determinant)
        above = new_minimum > 0  # a minimum is never above zero
        new_scale = torch.where(above, sum_xl * inverse(sum_l2), new_scale)
        new_minimum = new_minimum.clamp(max=0)
        found = error(new_scale, new_minimum, codes)
        better = (determinant > 0) & (found < best)
        best = torch.where(better, found, best)
        rounding, shift = torch.where(better, tried, rounding), torch.where(better, minimum, shift)
        scale, minimum = torch.where(better, new_scale, scale), torch.where(better, new_minimum, minimum)
    return scale.squeeze(-1), -minimum.squeeze(-1), torch.round((x - shift) * rounding).clamp(0, levels)


def fit_centred(x: torch.Tensor, weights: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale of each block (…, n) and its codes, x ~ scale·code with codes -levels to levels - 1.

    llama.cpp's `make_qx_quants`.
    """
    largest = x.gather(-1, x.abs().argmax(-1, keepdim=True))
    best, gain = torch.zeros_like(largest).squeeze(-1), torch.full_like(largest, -1.0).squeeze(-1)
    rounding = torch.zeros_like(largest)
    for trial in (0, *range(-9, 0), *range(1, 10)):
        tried = -(levels + 0.1 * trial) * inverse(largest)
        codes = torch.round(x * tried).clamp(-levels, levels - 1)
        along, square = (weights * x * codes).sum(-1), (weights * codes * codes).sum(-1)
        scale = along * inverse(square)
        better = along * scale > gain
        rounding = torch.where(better.unsqueeze(-1), tried, rounding)
        best, gain = torch.where(better, scale, best), torch.where(better, along * scale, gain)
    return best, torch.round(x * rounding).clamp(-levels, levels - 1)


def fit_positive(x: torch.Tensor, weights: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale of each group (…, n) of numbers that are not negative, and its codes: x ~ scale·code, codes 0 to `levels`.

    llama.cpp's `make_qp_quants`: the best of nine roundings, then one code after the other where that is nearer.
    """
    largest = x.amax(-1, keepdim=True)
    rounding, least = levels * inverse(largest), torch.full_like(largest, torch.inf)
    for trial in (0, -4, -3, -2, -1, 1, 2, 3, 4):
        tried = (levels + 0.1 * trial) * inverse(largest)
        codes = torch.round(x * tried).clamp(max=levels)
        found = (weights * (x - codes * inverse(tried)).square()).sum(-1, keepdim=True)
        better = found < least
        rounding, least = torch.where(better, tried, rounding), torch.where(better, found, least)
    codes = torch.round(x * rounding).clamp(max=levels)
    along, square = (weights * x * codes).sum(-1), (weights * codes * codes).sum(-1)
    for _ in range(5):
        before = codes.clone()
        for place in range(x.shape[-1]):
            weight, value, code = weights[..., place], x[..., place], codes[..., place]
            others, others_square = along - weight * value * code, square - weight * code * code
            new = torch.round(value * others_square * inverse(others)).clamp(max=levels)
            new_along, new_square = others + weight * value * new, others_square + weight * new * new
            better = (others > 0) & (others_square > 0) & (new_along**2 * square > along**2 * new_square)
            codes[..., place] = torch.where(better, new, code)
            along, square = torch.where(better, new_along, along), torch.where(better, new_square, square)
        if torch.equal(codes, before):
            break
    return along * inverse(square), codes


def inverse(x: torch.Tensor) -> torch.Tensor:
    """1 / x, and 0 where x is 0."""
    return torch.where(x == 0, torch.zeros_like(x), 1 / x)
