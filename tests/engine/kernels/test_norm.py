"""Where no gradient is wanted a norm takes a shorter way to the same numbers."""

import pytest
import torch

from qlora_studio.engine.kernels import norm
from qlora_studio.engine.kernels.norm import KINDS, RmsNorm, rms_norm


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 64), (2, 7, 64), (2, 5, 3, 64)], ids=str)
def test_without_a_gradient_the_numbers_and_their_layout_are_the_same(shape, kind, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(shape, generator=generator).bfloat16(), torch.randn(64, generator=generator).bfloat16()
    for value in (x, x.transpose(0, -2)):
        expected = RmsNorm.apply(value, weight, 1e-5, kind)
        with torch.no_grad(), monkeypatch.context() as patch:
            patch.setattr(RmsNorm, "apply", None)  # the long way cannot be taken
            found = rms_norm(value, weight, 1e-5, kind)
        assert torch.equal(found, expected)
        assert [s for s, n in zip(found.stride(), found.shape, strict=True) if n > 1] == [
            s for s, n in zip(expected.stride(), expected.shape, strict=True) if n > 1
        ]


def test_long_rows_go_in_blocks_all_the_same(monkeypatch):
    monkeypatch.setitem(norm.NUMBERS_AT_ONCE, "cpu", 128)
    taken = []
    monkeypatch.setattr(
        norm, "norm_rows", lambda rows, *_: taken.append(rows.numel()) or (rows, torch.ones(len(rows), 1))
    )
    with torch.no_grad():
        rms_norm(torch.randn(1, 10, 64), torch.ones(64), 1e-5, KINDS[0])
    assert max(taken) == 128 and sum(taken) == 640
