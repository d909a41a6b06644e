"""A weight in NF4 that is dequantised a few rows at a time: the whole of it is in memory in 4 bits only.

Double quantisation looks at the scales of the whole weight, so these are collected first; the values are brought to 4
bits, and back, piece by piece. The numbers are those of bitsandbytes' own calls on the whole weight, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit, dequantize_blockwise, quantize_4bit, quantize_blockwise

BLOCK = 64
"""Values that share a scale."""
NESTED_BLOCK = 256
"""Scales that share a scale of their own, as bitsandbytes' double quantisation has it."""


@dataclass(frozen=True, slots=True)
class FourBitRows:
    """A weight (rows, columns) in NF4."""

    packed: torch.Tensor
    """Two values a byte, in one dimension."""
    scales: torch.Tensor
    """fp32, one for `block` values, already through their own quantisation."""
    columns: int
    dtype: torch.dtype
    """What it is dequantised to."""
    block: int = BLOCK

    @classmethod
    def quantise(cls, pieces: Iterable[torch.Tensor], dtype: torch.dtype) -> FourBitRows:
        """Brings a weight, given as pieces of whole rows, to NF4 with double quantisation as a layer of this dtype has it.

        Every row fills whole blocks, or there is one piece: see `has_whole_rows`.
        """
        packed, scales, columns = [], [], 1
        for piece in pieces:
            columns = piece.shape[1]
            codes, state = quantize_4bit(piece.to(dtype).contiguous(), blocksize=BLOCK, quant_type="nf4")
            packed.append(codes.reshape(-1))
            scales.append(state.absmax)
        whole = torch.cat(scales)
        offset = whole.mean()
        nested, nested_state = quantize_blockwise(whole - offset, blocksize=NESTED_BLOCK)
        return cls(torch.cat(packed), dequantize_blockwise(nested, nested_state) + offset, columns, dtype)

    @classmethod
    def of_state(cls, packed: torch.Tensor, state: QuantState) -> FourBitRows:
        """A weight that is stored in NF4, from its bytes and bitsandbytes' description of them."""
        scales = state.absmax
        if state.nested:
            scales = dequantize_blockwise(state.absmax, state.state2) + state.offset
        return cls(packed.reshape(-1), scales.float(), state.shape[1], state.dtype, state.blocksize)

    def rows(self, first: int, after: int) -> torch.Tensor:
        """Rows `first` to `after`, dequantised; all of them where a row does not fill whole blocks."""
        begin, end = first * self.columns, after * self.columns
        assert not begin or has_whole_rows(self.columns, self.block), "a block of 4-bit values is cut in two"
        state = QuantState(
            absmax=self.scales[begin // self.block : math.ceil(end / self.block)].contiguous(),
            shape=torch.Size((after - first, self.columns)),
            dtype=self.dtype,
            blocksize=self.block,
            quant_type="nf4",
        )
        values = dequantize_4bit(self.packed[begin // 2 : math.ceil(end / 2)].reshape(-1, 1), state)
        return values.reshape(after - first, self.columns)


def has_whole_rows(columns: int, block: int = BLOCK) -> bool:
    """Whether each row fills whole blocks, so that rows can be taken alone.

    Others go as a whole weight only: the blocks reach over rows, and bitsandbytes 0.50 dequantises some such weights on a
    CPU (96 columns) to other numbers than it packed, which depend on all rows. A chat computes with those.
    """
    return columns % block == 0
