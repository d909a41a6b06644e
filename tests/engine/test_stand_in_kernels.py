"""Stand-ins of the kernels: what they mark, in what order and with what numbers, and the shapes that they give."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from qlora_studio.engine.kernels.documents import Documents
from qlora_studio.engine.kernels.gated_mlp import ACTIVATIONS, GatedParts
from qlora_studio.engine.kernels.linear import as_product
from qlora_studio.engine.kernels.norm import NormKind
from qlora_studio.engine.stand_in_kernels import Mark, Marks, attention_kernel, mlp_kernel, norm_kernel
from qlora_studio.engine.stand_ins import RANK, AdaptedLinear

TOKENS, WIDTH, INNER = 3, 4, 6


def counted() -> Marks:
    """Marks of a device that holds 7 bytes."""
    return Marks(held=lambda: 7)


def test_marks_are_taken_once_and_hold_nothing_unless_they_are_told_how_much():
    marks = Marks()
    marks.norm(torch.ones(2, 5), NormKind(0.0, True))
    marks.norm(torch.ones(2, 5), NormKind(1.0, True))
    marks.mlp(12)
    marks.mlp(12, tiled=True)
    marks.mlp(12, tiled=True, blocks=False)
    marks.attention()
    marks.attention(9)
    assert marks.take() == (
        Mark(held=0, norm_numbers=10, norm_fused=True, inner_numbers=0, tile_numbers=0, attention=False),
        Mark(held=0, norm_numbers=10, norm_fused=False, inner_numbers=0, tile_numbers=0, attention=False),
        Mark(held=0, norm_numbers=0, norm_fused=False, inner_numbers=12, tile_numbers=0, attention=False),
        Mark(held=0, norm_numbers=0, norm_fused=False, inner_numbers=12, tile_numbers=12, attention=False),
        Mark(held=0, norm_numbers=0, norm_fused=False, inner_numbers=0, tile_numbers=12, attention=False),
        Mark(held=0, norm_numbers=0, norm_fused=False, inner_numbers=0, tile_numbers=0, attention=True),
        Mark(held=9, norm_numbers=0, norm_fused=False, inner_numbers=0, tile_numbers=0, attention=True),
    )
    assert marks.take() == () and counted().held() == 7


def test_a_norm_keeps_its_input_and_a_number_a_row_and_marks_its_gradient():
    marks, weight = counted(), torch.ones(WIDTH)
    whole = torch.randn(2, TOKENS, WIDTH)
    x = whole.transpose(0, 1).requires_grad_()  # (tokens, 2, width), moved in memory
    out = norm_kernel(marks)(x, weight, 1e-5, NormKind(0.0, False))
    assert (out.shape, out.stride(), marks.made) == (x.shape, x.stride(), [])
    kept = out.grad_fn.saved_tensors
    assert kept[0].data_ptr() == x.data_ptr() and kept[2] is weight
    assert (kept[1].shape, kept[1].dtype) == ((2 * TOKENS, 1), torch.float32)
    (gradient,) = torch.autograd.grad(out, x, torch.ones_like(out))
    assert (gradient.shape, gradient.stride()) == (x.shape, x.stride())
    assert marks.take() == (Mark(7, norm_numbers=2 * TOKENS * WIDTH, norm_fused=True),)


def parts_of() -> tuple[GatedParts, list[torch.Tensor]]:
    """A gated MLP of three adapted layers, and the parameters of its adapters."""
    layers = [
        AdaptedLinear(torch.nn.Linear(inputs, outputs, bias=False), True)
        for inputs, outputs in ((WIDTH, INNER), (WIDTH, INNER), (INNER, WIDTH))
    ]
    gate, up, down = (as_product(layer) for layer in layers)
    adapters = [one for layer in layers for name, one in layer.named_parameters() if "lora" in name]
    for one in adapters:
        one.requires_grad_()
    return GatedParts((gate, up), down, ACTIVATIONS[0]), adapters


@pytest.mark.parametrize("tiled", [False, True])
def test_a_gated_mlp_has_the_shape_of_its_input_and_a_gradient_for_every_adapter(tiled):
    marks, (parts, adapters) = counted(), parts_of()
    x = torch.randn(1, TOKENS, WIDTH, requires_grad=True)
    out = mlp_kernel(marks)(x, parts, tiled=tiled)
    assert out.shape == x.shape and marks.made == []
    found = torch.autograd.grad(out, [x, *adapters], torch.ones_like(out))
    assert [one.shape for one in found] == [x.shape, *(one.shape for one in adapters)]
    assert {tuple(one.shape) for one in adapters} == {(RANK, WIDTH), (INNER, RANK), (RANK, INNER), (WIDTH, RANK)}
    inner = TOKENS * INNER
    if tiled:  # the blocks are those of the product after the activation; the tile is there in all three
        assert marks.take() == (
            Mark(7, inner_numbers=inner, tile_numbers=inner),
            Mark(7, inner_numbers=0, tile_numbers=inner),
            Mark(7, inner_numbers=0, tile_numbers=inner),
        )
    else:
        assert marks.take() == (Mark(7, inner_numbers=inner),)


@pytest.mark.parametrize("tiled", [False, True])
def test_a_layer_that_is_gate_and_up_in_one_goes_through_as_well(tiled):
    fused = AdaptedLinear(torch.nn.Linear(WIDTH, 2 * INNER, bias=False), True)
    down = AdaptedLinear(torch.nn.Linear(INNER, WIDTH, bias=False), True)
    marks, x = counted(), torch.randn(TOKENS, WIDTH, requires_grad=True)
    parts = GatedParts((as_product(fused),), as_product(down), ACTIVATIONS[0])
    out = mlp_kernel(marks)(x, parts, tiled=tiled)
    (gradient,) = torch.autograd.grad(out, x, torch.ones_like(out))
    assert out.shape == x.shape == gradient.shape
    assert [mark.inner_numbers for mark in marks.take()] == [TOKENS * INNER, *[0] * tiled]


def attended(heads: int, kv_heads: int) -> list[torch.Tensor]:
    shapes = ((1, heads, 5, 8), (1, kv_heads, 5, 8), (1, kv_heads, 5, 6))
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def test_packed_attention_notes_the_window_and_marks_with_its_gradients_there():
    marks, documents, inputs = counted(), Documents(((0, 5),)), attended(4, 2)
    out, weights = attention_kernel(marks)(None, *inputs, None, documents=documents, sliding_window=3)
    assert (tuple(out.shape), weights, documents.windows, marks.made) == ((1, 5, 4, 6), None, [3], [])
    assert out.is_contiguous(), "as the next product wants it"
    kept = [tuple(one.shape) for one in out.grad_fn.next_functions[0][0].saved_tensors]
    assert kept == [(1, 4, 5, 8), (1, 2, 5, 8), (1, 2, 5, 6), (1, 4, 5, 6), (1, 4, 5)]
    found = torch.autograd.grad(out, inputs, torch.ones_like(out))
    assert [one.shape for one in found] == [one.shape for one in inputs]
    assert marks.take() == (Mark(7, attention=True),)


def test_heads_that_cannot_be_shared_are_refused_by_number():
    with pytest.raises(ValueError, match=r"^4 heads of queries cannot share 3 of keys$"):
        attention_kernel(Marks())(None, *attended(4, 3), None, documents=Documents(((0, 5),)))


def test_padded_attention_is_torch_s_and_marks_the_gradients_that_are_made_next():
    marks = counted()
    query, key, value = (torch.randn(2, heads, 5, 8, requires_grad=True) for heads in (4, 2, 2))
    module = SimpleNamespace(is_causal=True, num_key_value_groups=2, training=True)
    out, weights = attention_kernel(marks)(module, query, key, value, None, scaling=0.5)
    wanted = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=0.5, enable_gqa=True
    ).transpose(1, 2)
    assert weights is None
    torch.testing.assert_close(out, wanted)
    upstream = torch.randn_like(out)
    found = torch.autograd.grad(out, (query, key, value), upstream)
    for one, other in zip(found, torch.autograd.grad(wanted, (query, key, value), upstream), strict=True):
        torch.testing.assert_close(one, other)
    assert marks.take() == (Mark(7 + 4 * (2 * 4 * 5 * 8 + 2 * 2 * 2 * 5 * 8), attention=True),)
