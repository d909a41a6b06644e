"""The backward pass of short rows against torch's attention in fp32: as near as torch's own kernel in bf16 is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from qlora_studio.core.micro_batches import filled
from qlora_studio.engine.kernels import documents, short_rows
from qlora_studio.engine.kernels.documents import Documents, attend_documents
from qlora_studio.engine.kernels.short_rows import LONGEST, SHORTEST, row_gradients
from tests.engine.conftest import relative

SHAPES = {"one block": 77, "whole blocks": 128, "blocks and a rest": 300, "shortest": SHORTEST, "longest": LONGEST}


@pytest.mark.parametrize(("heads", "kv_heads"), [(9, 3), (4, 4), (4, 1)])
@pytest.mark.parametrize("length", SHAPES.values(), ids=SHAPES)
def test_gradients_are_those_of_attention(length, heads, kv_heads):
    torch.manual_seed(length)
    query, gradient = torch.randn(2, heads, length, 16).unbind()
    key, value = torch.randn(2, kv_heads, length, 16).unbind()
    inputs = [part.clone().requires_grad_() for part in (query, key, value)]
    wanted = F.scaled_dot_product_attention(
        *(part[None] for part in inputs), is_causal=True, scale=0.3, enable_gqa=True
    )
    wanted.backward(gradient[None])
    scores = (query @ key.repeat_interleave(heads // kv_heads, 0).transpose(1, 2) * 0.3).masked_fill(
        torch.ones(length, length, dtype=torch.bool).triu(1), float("-inf")
    )
    found = row_gradients(gradient, (query, key, value), wanted[0].detach(), scores.logsumexp(-1), 0.3)
    for one, part in zip(found, inputs, strict=True):
        assert relative(one, part.grad) < 2e-6


@pytest.mark.parametrize("scale", [None, 0.3])
def test_packed_rows_take_it_in_bf16_and_are_as_near_as_torch_s_kernel(scale, monkeypatch):
    spans, taken = ((0, 5), (5, 82), (82, 282)), []
    inner = documents.row_gradients
    monkeypatch.setattr(documents, "row_gradients", lambda *a: (taken.append(a[0].shape[1]), inner(*a))[1])
    torch.manual_seed(0)
    query, gradient = torch.randn(2, 1, 6, 300, 16).unbind()
    key, value = torch.randn(2, 1, 2, 300, 16).unbind()

    def gradients(dtype):
        parts = [part.to(dtype).requires_grad_() for part in (query.clone(), key.clone(), value.clone())]
        out, _ = attend_documents(None, *parts, None, documents=Documents(spans), scaling=scale)
        out.backward(gradient.to(dtype).transpose(1, 2))
        return torch.cat([part.grad.flatten().float() for part in parts])

    exact = gradients(torch.float32)
    assert taken == []
    found = gradients(torch.bfloat16)
    assert taken == [filled(77), filled(200)]
    monkeypatch.setattr(documents, "suits", lambda query, length: False)
    kernel = gradients(torch.bfloat16)
    assert relative(found, exact) < 1.2 * relative(kernel, exact) < 1e-2


@pytest.mark.parametrize(
    ("length", "blocks"), [(64, [64]), (96, [96]), (97, [64, 33]), (128, [64, 64]), (130, [64, 64, 2])]
)
def test_a_row_of_up_to_96_tokens_is_one_block_and_a_longer_one_several(monkeypatch, length, blocks):
    seen, inner = [], short_rows.lower_triangle
    monkeypatch.setattr(short_rows, "lower_triangle", lambda size: seen.append(size) or inner(size))
    query, key = torch.zeros(2, length, 8), torch.zeros(1, length, 8)
    row_gradients(query, (query, key, key), query, torch.zeros(2, length), 0.3)
    assert seen == blocks
