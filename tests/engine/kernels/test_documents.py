"""Attention over packed rows, each way of computing it against the definition: softmax over what a token may see."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from qlora_studio.engine.kernels import documents
from qlora_studio.engine.kernels.documents import (
    Documents,
    attend_documents,
    attend_rows,
    filled_row,
    local_mask,
)

HEADS, KV_HEADS, WIDTH = 4, 2, 8
SPANS = ((0, 5), (5, 75), (75, 78))


def parts(tokens: int, kv_heads: int = KV_HEADS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(tokens)
    return (
        torch.randn(1, HEADS, tokens, WIDTH),
        torch.randn(1, kv_heads, tokens, WIDTH),
        torch.randn(1, kv_heads, tokens, WIDTH),
    )


def defined(query, key, value, spans, scale=None, window=None):
    """(1, tokens, heads, head_dim) by the definition; zeros behind the last row."""
    groups = query.shape[1] // key.shape[1]
    out = torch.zeros(1, query.shape[2], query.shape[1], value.shape[-1])
    for head in range(query.shape[1]):
        for start, end in spans:
            q, k, v = query[0, head, start:end], key[0, head // groups, start:end], value[0, head // groups, start:end]
            scores = q @ k.T * (query.shape[-1] ** -0.5 if scale is None else scale)
            back = torch.arange(end - start)[:, None] - torch.arange(end - start)
            seen = (back >= 0) & (back < (window or end))
            out[0, start:end, head] = scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v
    return out


def with_gradients(attend, given, weight):
    """What `attend` gives of these parts, and the gradients of each where the result is weighed so."""
    leaves = [part.clone().requires_grad_() for part in given]
    out = attend(*leaves)
    (out * weight).sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("window", [None, 4, 5, 70, 71])
@pytest.mark.parametrize("scale", [None, 0.5])
@pytest.mark.parametrize(
    ("spans", "tokens"), [(SPANS, 78), (SPANS, 90), (((0, 64),), 64), (((0, 60),), 64), (((0, 64),), 70)], ids=str
)
def test_each_way_gives_the_definition_and_its_gradients(spans, tokens, scale, window):
    given = parts(tokens)
    weight = torch.randn(1, tokens, HEADS, WIDTH)
    wanted = with_gradients(lambda q, k, v: defined(q, k, v, spans, scale, window), given, weight)
    ways = {
        "processor": lambda q, k, v: attend_documents(
            None, q, k, v, None, documents=Documents(spans), scaling=scale, sliding_window=window
        )[0],
        "repeated": lambda q, k, v: attend_documents(
            None, q, k, v, None, documents=Documents(spans, repeats=True), scaling=scale, sliding_window=window
        )[0],
        "row by row": lambda q, k, v: attend_rows((q, k, v), spans, scale, window),
    }
    for name, way in ways.items():
        for found, one in zip(with_gradients(way, given, weight), wanted, strict=True):
            torch.testing.assert_close(found, one, rtol=1e-4, atol=1e-5, msg=name)


def test_heads_that_are_not_grouped_go_row_by_row_as_well():
    given = parts(10, HEADS)
    torch.testing.assert_close(attend_rows(given, ((0, 3), (3, 10)), None, None), defined(*given, ((0, 3), (3, 10))))


@pytest.mark.parametrize(("window", "sides"), [(None, (-1, 0)), (3, (2, 0))])
@pytest.mark.parametrize("kv_heads", [KV_HEADS, HEADS])
def test_one_kernel_for_all_rows_is_told_where_they_start_and_how_far_they_look(monkeypatch, kv_heads, window, sides):
    told = []

    def varlen(q, k, v, *options, **named):
        told.append((q.is_contiguous(), options, named))
        return q + v.repeat_interleave(HEADS // kv_heads, 1)

    monkeypatch.setattr(documents, "varlen_attn", varlen)
    query, key, value = parts(9, kv_heads)
    query = query.transpose(1, 2).contiguous().transpose(1, 2).flip(-1)
    starts = torch.tensor([0, 5, 9], dtype=torch.int32)
    rows = Documents(((0, 5), (5, 9)), starts, 5)
    out, weights = attend_documents(None, query, key, value, None, documents=rows, scaling=0.5, sliding_window=window)
    assert weights is None and rows.windows == [window]
    wanted = (query + value.repeat_interleave(HEADS // kv_heads, 1)).transpose(1, 2)
    assert torch.equal(out, wanted) and out.shape == (1, 9, HEADS, WIDTH)
    named = {"scale": 0.5, "window_size": sides, "enable_gqa": kv_heads < HEADS}
    assert told == [(True, (starts, starts, 5, 5), named)]


@pytest.mark.parametrize(
    ("length", "window", "rows"),
    [
        (3, None, None),
        (3, 3, None),
        (3, 4, None),
        (4, 3, ["x...", "xx..", "xxx.", ".xxx"]),
        (5, 1, ["x....", ".x...", "..x..", "...x.", "....x"]),
        (6, 2, ["x.....", "xx....", ".xx...", "..xx..", "...xx.", "....xx"]),
    ],
)
def test_a_local_mask_shows_the_window_and_nothing_else(length, window, rows):
    mask = local_mask(length, window, torch.zeros(1, dtype=torch.bfloat16))
    if rows is None:
        assert mask is None
    else:
        assert mask.dtype == torch.bfloat16
        assert ["".join("x" if value == 0 else "." for value in row) for row in mask.tolist()] == rows
        assert set(mask.flatten().tolist()) == {0.0, float("-inf")}


def test_a_row_is_filled_up_by_what_lies_behind_it_or_by_zeros():
    part = torch.arange(1.0, 101).view(1, 1, 100, 1)
    assert filled_row(part, 10, 20).flatten().tolist() == [float(one) for one in range(11, 75)]
    assert filled_row(part, 36, 50).flatten().tolist() == [float(one) for one in range(37, 101)]
    assert filled_row(part, 37, 50).flatten().tolist() == [*range(38, 51), *[0.0] * 51]
    assert filled_row(part, 90, 100).flatten().tolist() == [*range(91, 101), *[0.0] * 54]


@pytest.mark.parametrize("window", [None, 2, 4])
def test_whole_rows_without_spans_are_attended_as_they_are(window):
    query, key, value = parts(4)
    module = SimpleNamespace(is_causal=True, num_key_value_groups=2, training=False)
    out, weights = attend_documents(module, query, key, value, None, scaling=0.5, sliding_window=window)
    assert weights is None
    torch.testing.assert_close(out, defined(query, key, value, ((0, 4),), 0.5, window), rtol=1e-4, atol=1e-5)


def test_one_token_goes_on_with_the_mask_of_its_cache_whatever_its_window():
    query, key, value = (*parts(1)[:1], *parts(6)[1:])
    module = SimpleNamespace(is_causal=True, num_key_value_groups=2, training=False)
    mask = torch.tensor([False, True, True, True, True, True]).view(1, 1, 1, 6)
    wanted = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True).transpose(1, 2)
    with torch.no_grad():
        found, _ = attend_documents(module, query, key, value, mask, scaling=None, sliding_window=3)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(("device", "way"), [("cpu", "attend_one_query"), ("meta", "sdpa_attention_forward")])
def test_one_query_has_a_way_of_its_own_on_a_processor(device, way, monkeypatch):
    for name in ("attend_one_query", "sdpa_attention_forward"):
        monkeypatch.setattr(documents, name, lambda *_, name=name, **options: (name, options["scaling"]))
    query, key, value = (part.to(device) for part in parts(1))
    assert attend_documents(SimpleNamespace(), query, key, value, None, scaling=0.5) == (way, 0.5)


def test_a_row_alone_is_given_on_as_the_kernel_made_it_and_others_are_put_together(monkeypatch):
    made = []

    def attend(q, k, v, **options):
        made.append(torch.randn(1, HEADS, q.shape[2], WIDTH))
        return made[-1]

    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    alone = attend_rows(parts(6), ((0, 6),), None, None)
    assert alone.shape == (1, 6, HEADS, WIDTH) and alone.data_ptr() == made[0].data_ptr(), "nothing is copied"
    more = attend_rows(parts(7), ((0, 2), (2, 6)), None, None)
    assert torch.equal(more, torch.cat([made[1], made[2], torch.zeros(1, HEADS, 1, WIDTH)], 2).transpose(1, 2))


def test_only_rows_of_a_length_that_suits_go_backward_by_matrix_products_wherever_they_lie(monkeypatch):
    seen, inner = [], documents.row_gradients

    def note(gradient, *rest):
        seen.append(gradient.shape[1])
        return inner(gradient, *rest)

    monkeypatch.setattr(documents, "row_gradients", note)
    spans = ((0, 70), (70, 80), (80, 200), (200, 300), (300, 813), (813, 829))
    leaves = [part.bfloat16().requires_grad_() for part in parts(829)]
    out, _ = attend_documents(None, *leaves, None, documents=Documents(spans))
    out.sum().backward()
    assert seen == [128, 128, 128, 64], "70, 120, 100 and 16 tokens, each filled up; 10 are too few and 513 too many"
