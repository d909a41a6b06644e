"""Saved inputs in the computer's memory: the same numbers when they come back, and little pinned beyond their size."""

from __future__ import annotations

import pytest
import torch

from qlora_studio.core.plan import MIB
from qlora_studio.engine.kernels import checkpointing
from qlora_studio.engine.kernels.checkpointing import copy_back, copy_to_host


@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 1), (4, 0), ()], ids=["whole", "one", "empty", "scalar"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_what_comes_back_is_what_was_saved(monkeypatch, shape, dtype):
    monkeypatch.setattr(checkpointing, "PINNED_BLOCK_BYTES", 16)  # so that few numbers make several pieces
    saved = torch.arange(torch.Size(shape).numel()).to(dtype).view(shape)
    held = copy_to_host(saved, pin=False)
    found = copy_back(held)
    assert torch.equal(found, saved) and found.dtype == dtype and found.shape == saved.shape
    assert sum(piece.numel() for piece in held.pieces) == saved.numel()


def test_an_expanded_tensor_comes_back_whole():
    saved = torch.arange(6.0).view(2, 1, 3).expand(2, 4, 3).transpose(0, 1)
    assert torch.equal(copy_back(copy_to_host(saved, pin=False)), saved)


@pytest.mark.parametrize("mib", [5, 33, 129, 514])
def test_pinned_memory_is_hardly_more_than_what_is_saved(monkeypatch, mib):
    """Blocks are rounded up to powers of two, as torch's allocator for pinned memory does."""
    pinned: list[int] = []
    empty = torch.empty

    def count(shape, *, dtype, device, pin_memory):
        assert pin_memory
        pinned.append(1 << (shape.numel() * dtype.itemsize - 1).bit_length())
        return empty(shape, dtype=dtype, device="meta")

    monkeypatch.setattr(torch, "empty", count)
    saved = empty(mib * MIB // 2 + 100, dtype=torch.bfloat16, device="meta")
    copy_to_host(saved, pin=True)
    assert 0 <= sum(pinned) - saved.nbytes < 2 * MIB
