"""GGUF's block formats in torch, vectorised over blocks: Q8_0, Q4_K, Q5_K, Q6_K; the others by the `gguf` package.

The search for scales follows llama.cpp's reference quantisation without an importance matrix (ggml-quants.c, MIT): a
block's scale and minimum are the weighted least-squares fit over a few trial roundings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type

BLOCK_VALUES = 1 << 18
"""Values a worker encodes at once: with their trial roundings about 20 MiB."""
SUPER = 256
"""Values of a K-quant's super-block."""


def encode(weight: torch.Tensor, kind: Type) -> np.ndarray:
    """The rows (rows, columns) or the vector (columns) as bytes of this type. Columns must fill whole blocks."""
    if kind == Type.F32:
        return weight.float().contiguous().numpy().view(np.uint8)
    if kind == Type.F16:
        return weight.to(torch.float16).contiguous().numpy().view(np.uint8)
    if kind == Type.BF16:
        return weight.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
    encoder = ENCODERS.get(kind)
    if encoder is None:
        packed: np.ndarray = gguf.quantize(weight.float().contiguous().numpy(), kind)
        return packed
    rows = weight.reshape(-1, weight.shape[-1])
    step = max(1, BLOCK_VALUES // rows.shape[1])
    starts = range(0, rows.shape[0], step)
    with one_thread_an_operation() as workers, ThreadPoolExecutor(workers) as pool:
        parts = list(pool.map(lambda start: encoder(rows[start : start + step].float()), starts))
    return torch.cat(parts).numpy()


@contextmanager
def one_thread_an_operation() -> Iterator[int]:
    """Yields how many workers to use: each encodes blocks alone, since threads inside small operations only wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def encode_q8_0(rows: torch.Tensor) -> torch.Tensor:
    """32 values in 34 bytes: an fp16 scale and eight bits each."""
    blocks = rows.view(rows.shape[0], -1, 32)
    scale = blocks.abs().amax(-1) / 127  # (rows, blocks)
    scaled = blocks * _inverse(scale).unsqueeze(-1)
    codes = (scaled.sign() * (scaled.abs() + 0.5).floor()).to(torch.int8)  # C's roundf: halves away from zero
    return torch.cat([_half(scale), codes.view(torch.uint8)], -1).flatten(1)


def encode_q4_k(rows: torch.Tensor) -> torch.Tensor:
    """256 values in 144 bytes: eight blocks of four-bit codes with six-bit scales and minima."""
    scales, codes = _fit_super_blocks(rows, levels=15, first=-1.0, trials=20)
    return torch.cat([scales, _nibbles(codes)], -1).flatten(1)


def encode_q5_k(rows: torch.Tensor) -> torch.Tensor:
    """256 values in 176 bytes: as Q4_K with a fifth bit of every code apart."""
    scales, codes = _fit_super_blocks(rows, levels=31, first=-0.5, trials=15)
    bits = torch.arange(8, dtype=torch.uint8).view(8, 1)
    high = ((codes >> 4) << bits).sum(-2, dtype=torch.uint8)  # (rows, super-blocks, 32)
    return torch.cat([scales, high, _nibbles(codes & 15)], -1).flatten(1)


def encode_q6_k(rows: torch.Tensor) -> torch.Tensor:
    """256 values in 210 bytes: sixteen blocks of six-bit codes around zero with eight-bit scales."""
    blocks = rows.view(rows.shape[0], -1, 16, 16)
    weights = blocks.square()
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    best, gain = torch.zeros_like(largest).squeeze(-1), torch.full_like(largest, -1.0).squeeze(-1)
    for trial in (0, *range(-9, 0), *range(1, 10)):
        inverse = -(32 + 0.1 * trial) * _inverse(largest)
        codes = torch.round(blocks * inverse).clamp(-32, 31)
        along, square = (weights * blocks * codes).sum(-1), (weights * codes * codes).sum(-1)
        scale = along * _inverse(square)
        better = along * scale > gain
        best, gain = torch.where(better, scale, best), torch.where(better, along * scale, gain)
    top = best.gather(-1, best.abs().argmax(-1, keepdim=True)).squeeze(-1)  # (rows, super-blocks)
    inverse = -128 * _inverse(top)
    whole = _inverse(inverse).half().float()
    scales = torch.round(inverse.unsqueeze(-1) * best).clamp(-128, 127)
    steps = _inverse(whole.unsqueeze(-1) * scales).unsqueeze(-1)
    codes = (torch.round(blocks * steps).clamp(-32, 31) + 32).to(torch.uint8)
    halves = codes.view(*codes.shape[:2], 2, 4, 32)
    one, two, three, four = halves.unbind(-2)
    low = torch.cat([(one & 15) | ((three & 15) << 4), (two & 15) | ((four & 15) << 4)], -1).flatten(-2)
    high = ((one >> 4) | ((two >> 4) << 2) | ((three >> 4) << 4) | ((four >> 4) << 6)).flatten(-2)
    return torch.cat([low, high, scales.to(torch.int8).view(torch.uint8), _half(whole)], -1).flatten(1)


ENCODERS: dict[Type, Callable[[torch.Tensor], torch.Tensor]] = {
    Type.Q8_0: encode_q8_0, Type.Q4_K: encode_q4_k, Type.Q5_K: encode_q5_k, Type.Q6_K: encode_q6_k,
}  # fmt: skip


def _fit_super_blocks(
    rows: torch.Tensor, *, levels: int, first: float, trials: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sixteen bytes of scales of each super-block, and codes (rows, super-blocks, 8, 32): value = d·s·code - m·t."""
    blocks = rows.view(rows.shape[0], -1, 8, 32)
    scales, minima = _fit(blocks, levels, first, trials)  # (rows, super-blocks, 8)
    top_scale, top_minimum = scales.amax(-1), minima.amax(-1)
    six = torch.round(scales * (63 * _inverse(top_scale)).unsqueeze(-1)).clamp(0, 63)
    six_minima = torch.round(minima * (63 * _inverse(top_minimum)).unsqueeze(-1)).clamp(0, 63)
    scale, minimum = (top_scale / 63).half().float(), (top_minimum / 63).half().float()
    step, shift = scale.unsqueeze(-1) * six, minimum.unsqueeze(-1) * six_minima
    codes = torch.round((blocks + shift.unsqueeze(-1)) * _inverse(step).unsqueeze(-1)).clamp(0, levels).to(torch.uint8)
    s, m = six.to(torch.uint8), six_minima.to(torch.uint8)
    packed = [
        s[..., :4] | ((s[..., 4:] >> 4) << 6),
        m[..., :4] | ((m[..., 4:] >> 4) << 6),
        (s[..., 4:] & 15) | ((m[..., 4:] & 15) << 4),
    ]
    return torch.cat([_half(scale), _half(minimum), *packed], -1), codes


def _fit(x: torch.Tensor, levels: int, first: float, trials: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and minimum of each block (…, 32), x ~ scale·code - minimum with codes 0 to `levels`."""
    weights = x.square().mean(-1, keepdim=True).sqrt() + x.abs()
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True)
    sum_w, sum_x = weights.sum(-1, keepdim=True), (weights * x).sum(-1, keepdim=True)

    def error(scale: torch.Tensor, minimum: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        return (weights * (scale * codes + minimum - x).square()).sum(-1, keepdim=True)

    scale, minimum = (high - low) / levels, low
    best = error(scale, minimum, torch.round((x - low) * _inverse(scale)).clamp(0, levels))
    for trial in range(trials + 1):
        inverse = (first + 0.1 * trial + levels) * _inverse(high - minimum)  # from the best minimum so far
        codes = torch.round((x - minimum) * inverse).clamp(0, levels)
        sum_l = (weights * codes).sum(-1, keepdim=True)
        sum_l2 = (weights * codes * codes).sum(-1, keepdim=True)
        sum_xl = (weights * x * codes).sum(-1, keepdim=True)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        new_scale = (sum_w * sum_xl - sum_x * sum_l) * _inverse(determinant)
        new_minimum = (sum_l2 * sum_x - sum_l * sum_xl) * _inverse(determinant)
        above = new_minimum > 0  # a minimum is never above zero
        new_scale = torch.where(above, sum_xl * _inverse(sum_l2), new_scale)
        new_minimum = new_minimum.clamp(max=0)
        found = error(new_scale, new_minimum, codes)
        better = (determinant > 0) & (found < best)
        best = torch.where(better, found, best)
        scale, minimum = torch.where(better, new_scale, scale), torch.where(better, new_minimum, minimum)
    return scale.squeeze(-1), -minimum.squeeze(-1)


def _nibbles(codes: torch.Tensor) -> torch.Tensor:
    """Codes (…, 8, 32) of four bits, two blocks to a run of 32 bytes."""
    pairs = codes.view(*codes.shape[:-2], 4, 2, 32)
    return (pairs[..., 0, :] | (pairs[..., 1, :] << 4)).flatten(-2)


def _half(x: torch.Tensor) -> torch.Tensor:
    """fp16 as two bytes in a last dimension of its own."""
    return x.half().unsqueeze(-1).view(torch.uint8)


def _inverse(x: torch.Tensor) -> torch.Tensor:
    """1 / x, and 0 where x is 0."""
    return torch.where(x == 0, torch.zeros_like(x), 1 / x)
