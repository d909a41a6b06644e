"""GGUF's block formats in torch: Q8_0, Q4_K, Q5_K, Q6_K, and Q5_0, Q5_1 with an importance matrix; else the `gguf` package.

An importance matrix says how much each column of a matrix counts: the mean square of what the layer is given there. Errors
are then weighed by it as llama.cpp's `quantize_row_*_impl` weighs them (ggml-quants.c, MIT).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type

from qlora_studio.engine.gguf_file.fits import Trials, fit_centred, fit_positive, fit_shifted, inverse

BLOCK_VALUES = 1 << 18
"""Values a worker encodes at once: with their trial roundings about 20 MiB."""
SUPER = 256
"""Values of a K-quant's super-block."""
Importance = torch.Tensor | None
"""Of each column (columns,), fp32; None where all count alike."""


def encode(weight: torch.Tensor, kind: Type, importance: Importance = None) -> np.ndarray:
    """The rows (rows, columns) or the vector (columns) as bytes of this type. Columns must fill whole blocks.

    Types of 8 bits and more take no notice of `importance`, as in llama.cpp.
    """
    if kind == Type.F32:
        return weight.float().contiguous().numpy().view(np.uint8)
    if kind == Type.F16:
        return weight.to(torch.float16).contiguous().numpy().view(np.uint8)
    if kind == Type.BF16:
        return weight.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
    encoder = ENCODERS.get(kind)
    if encoder is None and importance is not None:
        encoder = WEIGHTED.get(kind)
    if encoder is None:
        packed: np.ndarray = gguf.quantize(weight.float().contiguous().numpy(), kind)
        return packed
    chosen, rows = encoder, weight.reshape(-1, weight.shape[-1])
    step = max(1, BLOCK_VALUES // rows.shape[1])
    starts = range(0, rows.shape[0], step)
    with one_thread_an_operation() as workers, ThreadPoolExecutor(workers) as pool:
        parts = list(pool.map(lambda start: chosen(rows[start : start + step].float(), importance), starts))
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


def encode_q8_0(rows: torch.Tensor, importance: Importance = None) -> torch.Tensor:
    """32 values in 34 bytes: an fp16 scale and eight bits each."""
    blocks = rows.view(rows.shape[0], -1, 32)
    scale = blocks.abs().amax(-1) / 127  # (rows, blocks)
    scaled = blocks * inverse(scale).unsqueeze(-1)
    codes = (scaled.sign() * (scaled.abs() + 0.5).floor()).to(torch.int8)  # C's roundf: halves away from zero
    return torch.cat([_fp16_bytes(scale), codes.view(torch.uint8)], -1).flatten(1)


def encode_q4_k(rows: torch.Tensor, importance: Importance = None) -> torch.Tensor:
    """256 values in 144 bytes: eight blocks of four-bit codes with six-bit scales and minima."""
    scales, codes = _fit_super_blocks(rows, importance, Trials(15, first=-1.0, step=0.1, count=21))
    return torch.cat([scales, _nibbles(codes)], -1).flatten(1)


def encode_q5_k(rows: torch.Tensor, importance: Importance = None) -> torch.Tensor:
    """256 values in 176 bytes: as Q4_K with a fifth bit of every code apart."""
    scales, codes = _fit_super_blocks(rows, importance, Trials(31, first=-0.5, step=0.1, count=16))
    bits = torch.arange(8, dtype=torch.uint8).view(8, 1)
    high = ((codes >> 4) << bits).sum(-2, dtype=torch.uint8)  # (rows, super-blocks, 32)
    return torch.cat([scales, high, _nibbles(codes & 15)], -1).flatten(1)


def encode_q6_k(rows: torch.Tensor, importance: Importance = None) -> torch.Tensor:
    """256 values in 210 bytes: sixteen blocks of six-bit codes around zero with eight-bit scales."""
    blocks = rows.view(rows.shape[0], -1, 16, 16)
    weights = blocks.square() if importance is None else importance.view(-1, 16, 16).expand_as(blocks)
    best, _ = fit_centred(blocks, weights, 32)
    top = best.gather(-1, best.abs().argmax(-1, keepdim=True)).squeeze(-1)  # (rows, super-blocks)
    rounding = -128 * inverse(top)
    whole = inverse(rounding).half().float()
    scales = torch.round(rounding.unsqueeze(-1) * best).clamp(-128, 127)
    steps = inverse(whole.unsqueeze(-1) * scales).unsqueeze(-1)
    codes = (torch.round(blocks * steps).clamp(-32, 31) + 32).to(torch.uint8)
    halves = codes.view(*codes.shape[:2], 2, 4, 32)
    one, two, three, four = halves.unbind(-2)
    low = torch.cat([(one & 15) | ((three & 15) << 4), (two & 15) | ((four & 15) << 4)], -1).flatten(-2)
    high = ((one >> 4) | ((two >> 4) << 2) | ((three >> 4) << 4) | ((four >> 4) << 6)).flatten(-2)
    return torch.cat([low, high, scales.to(torch.int8).view(torch.uint8), _fp16_bytes(whole)], -1).flatten(1)


def encode_q5_0(rows: torch.Tensor, importance: Importance = None) -> torch.Tensor:
    """32 values in 22 bytes: an fp16 scale and five bits each around zero. Only with an importance matrix."""
    blocks = rows.view(rows.shape[0], -1, 32)
    scale, codes = fit_centred(blocks, _row_weights(rows, importance), 16)
    return torch.cat([_fp16_bytes(scale), _five_bits((codes + 16).to(torch.uint8))], -1).flatten(1)


def encode_q5_1(rows: torch.Tensor, importance: Importance = None) -> torch.Tensor:
    """32 values in 24 bytes: as Q5_0 with a minimum of the block. Only with an importance matrix."""
    blocks = rows.view(rows.shape[0], -1, 32)
    scale, minimum, codes = fit_shifted(blocks, _row_weights(rows, importance), _finer(31))
    return torch.cat([_fp16_bytes(scale), _fp16_bytes(-minimum), _five_bits(codes.to(torch.uint8))], -1).flatten(1)


ENCODERS: dict[Type, Callable[[torch.Tensor, Importance], torch.Tensor]] = {
    Type.Q8_0: encode_q8_0, Type.Q4_K: encode_q4_k, Type.Q5_K: encode_q5_k, Type.Q6_K: encode_q6_k,
}  # fmt: skip
WEIGHTED: dict[Type, Callable[[torch.Tensor, Importance], torch.Tensor]] = {
    Type.Q5_0: encode_q5_0, Type.Q5_1: encode_q5_1,
}  # fmt: skip
"""Those that only an importance matrix asks for; without one the `gguf` package has them."""


def _finer(levels: int) -> Trials:
    """The roundings that are tried where errors are weighed."""
    return Trials(levels, first=-0.9, step=0.05, count=37)


def _row_weights(rows: torch.Tensor, importance: Importance) -> torch.Tensor:
    """How much each value counts in a type without super-blocks, (rows, blocks, 32)."""
    weights = (rows.square().mean(-1, keepdim=True) + rows.square()).sqrt()
    return (weights if importance is None else weights * importance).view(rows.shape[0], -1, 32)


def _fit_super_blocks(rows: torch.Tensor, importance: Importance, trials: Trials) -> tuple[torch.Tensor, torch.Tensor]:
    """The sixteen bytes of scales of each super-block, and codes (rows, super-blocks, 8, 32): value = d·s·code - m·t."""
    blocks = rows.view(rows.shape[0], -1, 8, 32)
    if importance is None:
        weights = blocks.square().mean(-1, keepdim=True).sqrt() + blocks.abs()
        scales, minima, _ = fit_shifted(blocks, weights, trials)  # (rows, super-blocks, 8)
        (scale, six), (minimum, six_minima) = _six_bits(scales), _six_bits(minima)
    else:
        spread = 2 * blocks.square().mean((-2, -1), keepdim=True)
        weights = importance.view(-1, 8, 32) * (spread + blocks.square()).sqrt()
        scales, minima, _ = fit_shifted(blocks, weights, _finer(trials.levels))
        (scale, six), (minimum, six_minima) = (fit_positive(one, weights.sum(-1), 63) for one in (scales, minima))
    scale, minimum = scale.half().float(), minimum.half().float()
    step, shift = scale.unsqueeze(-1) * six, minimum.unsqueeze(-1) * six_minima
    codes = torch.round((blocks + shift.unsqueeze(-1)) * inverse(step).unsqueeze(-1)).clamp(0, trials.levels)
    s, m = six.to(torch.uint8), six_minima.to(torch.uint8)
    packed = [
        s[..., :4] | ((s[..., 4:] >> 4) << 6),
        m[..., :4] | ((m[..., 4:] >> 4) << 6),
        (s[..., 4:] & 15) | ((m[..., 4:] & 15) << 4),
    ]
    return torch.cat([_fp16_bytes(scale), _fp16_bytes(minimum), *packed], -1), codes.to(torch.uint8)


def _six_bits(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale (…) and codes (…, 8) of six bits, none of them negative, the largest exact."""
    top = x.amax(-1)
    return top / 63, torch.round(x * (63 * inverse(top)).unsqueeze(-1)).clamp(0, 63)


def _nibbles(codes: torch.Tensor) -> torch.Tensor:
    """Codes (…, 8, 32) of four bits, two blocks to a run of 32 bytes."""
    pairs = codes.view(*codes.shape[:-2], 4, 2, 32)
    return (pairs[..., 0, :] | (pairs[..., 1, :] << 4)).flatten(-2)


def _five_bits(codes: torch.Tensor) -> torch.Tensor:
    """Codes (…, 32) of five bits: the fifth ones in four bytes, then the first and second half of the others in pairs."""
    bits = torch.arange(8, dtype=torch.uint8)
    fifth = ((codes >> 4).view(*codes.shape[:-1], 4, 8) << bits).sum(-1, dtype=torch.uint8)
    return torch.cat([fifth, (codes[..., :16] & 15) | ((codes[..., 16:] & 15) << 4)], -1)


def _fp16_bytes(x: torch.Tensor) -> torch.Tensor:
    """fp16 as two bytes in a last dimension of its own."""
    return x.half().unsqueeze(-1).view(torch.uint8)
