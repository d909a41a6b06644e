"""A weight in pieces of rows is, bit for bit, what bitsandbytes makes of the whole."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

from qlora_studio.engine.four_bit_rows import FourBitRows, has_whole_rows
from qlora_studio.engine.merge import nf4_round_trip

SHAPES = [(300, 576), (129, 128), (40, 64), (7, 48), (64, 6), (300, 96), (3, 7), (1, 640)]


def ranges(rows: int, columns: int, block: int = 64):
    step = 5 if has_whole_rows(columns, block) else rows
    return [(first, min(rows, first + step)) for first in range(0, rows, step)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_pieces_through_four_bits_are_the_whole_through_four_bits(shape, dtype):
    torch.manual_seed(0)
    weight = torch.randn(shape, dtype=torch.bfloat16) * torch.logspace(-2, 1, shape[0], dtype=torch.bfloat16)[:, None]
    pieces = ranges(*shape)
    rows = FourBitRows.quantise((weight[first:after] for first, after in pieces), dtype)
    found = torch.cat([rows.rows(first, after) for first, after in pieces])
    assert torch.equal(found, nf4_round_trip(weight, dtype)) and found.dtype is dtype


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize(("block", "columns"), [(64, 192), (256, 512), (64, 96)])
def test_a_stored_weight_is_dequantised_by_rows_as_whole(nested, block, columns):
    weight = torch.randn(300, columns)
    packed, state = quantize_4bit(weight, blocksize=block, compress_statistics=nested, quant_type="nf4")
    rows = FourBitRows.of_state(packed, state)
    found = torch.cat([rows.rows(first, after) for first, after in ranges(300, columns, block)])
    assert torch.equal(found, dequantize_4bit(packed, state))
