"""Rotary positions of this engine beside those of transformers: CPU time of both ways, in turn, as a ratio.

    python benchmarks/rotary.py [--rounds 7]

Queries and keys have the shape of SmolLM2-135M's. One thread. The numbers are compared first, to the bit.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from qlora_studio.engine.kernels.rotary import Rotation, in_place_of

HEADS, HEAD = (9, 3), 64
ROWS = ((8, 80), (1, 640), (1, 2048))
"""Rows and tokens of each."""
REPEATS = 10


def both_ways(rotation: Rotation, given: tuple[torch.Tensor, ...], upstream: list[torch.Tensor]) -> list[torch.Tensor]:
    """The rotated queries and keys, and the gradients of both."""
    out = rotation(*given)
    return [*out, *torch.autograd.grad(out, given[:2], upstream)]


def compare(rows: int, tokens: int, dtype: torch.dtype, rounds: int) -> list[float]:
    """Seconds of transformers' and of ours, each the median of its rounds."""
    ways = apply_rotary_pos_emb, in_place_of(apply_rotary_pos_emb)
    q, k = (torch.randn(rows, tokens, heads, HEAD, dtype=dtype).transpose(1, 2).requires_grad_() for heads in HEADS)
    given = q, k, *(torch.randn(rows, tokens, HEAD, dtype=dtype) for _ in range(2))
    upstream = [torch.randn_like(one) for one in (q, k)]
    answers = [both_ways(way, given, upstream) for way in ways]
    assert all(torch.equal(one, other) for one, other in zip(*answers, strict=True))
    taken: list[list[float]] = [[], []]
    for _ in range(rounds):
        for way, seconds in zip(ways, taken, strict=True):
            begun = time.process_time()
            for _ in range(REPEATS):
                both_ways(way, given, upstream)
            seconds.append((time.process_time() - begun) / REPEATS)
    return [*map(statistics.median, taken)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for dtype in (torch.bfloat16, torch.float32):
        for rows, tokens in ROWS:
            theirs, ours = compare(rows, tokens, dtype, arguments.rounds)
            print(f"{dtype}, {rows} x {tokens}: {1e3 * theirs:.2f} -> {1e3 * ours:.2f} ms, {ours / theirs:.2f} times")


if __name__ == "__main__":
    main()
