"""Rotary positions: to the bit those of transformers and their gradients, and left alone where a family rotates otherwise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from transformers.models.gpt_neox import modeling_gpt_neox
from transformers.models.llama import modeling_llama
from transformers.models.phi3 import modeling_phi3

from qlora_studio.engine.kernels import rotary
from qlora_studio.engine.kernels.rotary import Rotate, computes_the_same, in_place_of, replace_rotations, rotate

WHOLE, PART = 8, 6


def numbers(*shape, dtype=torch.float32, seed=0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def heads(count, dtype, seed) -> torch.Tensor:
    """(batch, heads, tokens, head) as an attention layer has them: moved, not copied."""
    return numbers(2, 5, count, WHOLE, dtype=dtype, seed=seed).transpose(1, 2).requires_grad_()


def test_a_quarter_turn_takes_the_second_half_to_the_first_with_its_sign_turned():
    x = torch.tensor([[[[1.0, 2.0, 3.0, 4.0, 5.0]]]])  # the fifth number lies behind the rotated part
    cos, sin = torch.zeros(1, 1, 1, 4), torch.ones(1, 1, 1, 4)
    assert rotate(x, cos, sin).flatten().tolist() == [-3.0, -4.0, 1.0, 2.0, 5.0]
    assert rotate(x, torch.ones(1, 1, 1, 4), 0 * sin).flatten().tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert x.flatten().tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_its_gradient_turns_back():
    angle = torch.tensor([0.3, 1.1]).repeat(2).view(1, 1, 1, 4)
    x = numbers(1, 1, 1, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(
        Rotate.apply(x, angle.cos(), angle.sin()), x, rotate(x.detach(), angle.cos(), angle.sin())
    )
    torch.testing.assert_close(gradient, x.detach(), atol=1e-6, rtol=0)
    double = numbers(2, 3, 4, 6, dtype=torch.float64).requires_grad_()
    cos, sin = numbers(2, 1, 4, 4, dtype=torch.float64, seed=1), numbers(2, 1, 4, 4, dtype=torch.float64, seed=2)
    assert torch.autograd.gradcheck(lambda x: Rotate.apply(x, cos, sin), (double,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("theirs", "width"),
    [(modeling_llama.apply_rotary_pos_emb, WHOLE), (modeling_phi3.apply_rotary_pos_emb, PART)],
    ids=["whole heads", "part of each head"],
)
def test_numbers_gradients_and_layout_are_those_of_transformers_to_the_bit(theirs, width, dtype):
    q, k = heads(4, dtype, 1), heads(2, dtype, 2)
    cos, sin = numbers(2, 5, width, dtype=dtype, seed=3), numbers(2, 5, width, dtype=dtype, seed=4)
    wanted, found = theirs(q, k, cos, sin), in_place_of(theirs)(q, k, cos, sin)
    upstream = [numbers(*one.shape, dtype=dtype, seed=5 + place) for place, one in enumerate(wanted)]
    gradients = [torch.autograd.grad(one, (q, k), upstream) for one in (wanted, found)]
    with torch.no_grad():
        unwanted = in_place_of(theirs)(q, k, cos, sin)
    for one, other, third in zip(wanted, found, unwanted, strict=True):
        assert torch.equal(one, other) and torch.equal(one, third) and not third.requires_grad
        assert other.stride() == heads(one.shape[1], dtype, 0).stride()  # attention reads it as it lies
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_nothing_of_queries_and_keys_is_kept():
    q, kept = heads(4, torch.float32, 1), []
    cos, sin = numbers(2, 1, 5, WHOLE), numbers(2, 1, 5, WHOLE, seed=1)
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        Rotate.apply(q, cos, sin)
    assert [one.data_ptr() for one in kept] == [cos.data_ptr(), sin.data_ptr()]


def test_the_dimension_of_heads_is_where_the_layer_says():
    q, k = numbers(2, 5, 4, WHOLE), numbers(2, 5, 2, WHOLE, seed=1)
    cos, sin = numbers(2, 5, WHOLE, seed=2), numbers(2, 5, WHOLE, seed=3)
    wanted = modeling_llama.apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=2)
    found = in_place_of(modeling_llama.apply_rotary_pos_emb)(q, k, cos, sin, unsqueeze_dim=2)
    assert all(torch.equal(one, other) for one, other in zip(wanted, found, strict=True))


@pytest.mark.parametrize("place", range(4))
def test_another_format_than_that_of_the_positions_is_left_to_transformers(place):
    asked = []
    given = [numbers(2, 4, 5, WHOLE), numbers(2, 2, 5, WHOLE), numbers(2, 5, WHOLE), numbers(2, 5, WHOLE)]
    given[place] = given[place].double()
    answer = in_place_of(lambda *values: asked.append(values) or ("q", "k"))(*given)
    assert answer == ("q", "k") and [*map(id, asked[0][:4])] == [*map(id, given)] and asked[0][4] == 1


def neighbours_in_pairs(q, k, cos, sin, unsqueeze_dim=1):
    """GPT-J's way: numbers beside each other are a pair."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)

    def turned(x):
        return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)

    return q * cos + turned(q) * sin, k * cos + turned(k) * sin


def keys_alone(q, k, cos, sin, unsqueeze_dim=1):
    return q, modeling_llama.apply_rotary_pos_emb(q, k, cos, sin)[1]


def nothing_of_a_part(q, k, cos, sin, unsqueeze_dim=1):
    """As whole heads; of a part it makes something else."""
    if cos.shape[-1] < q.shape[-1]:
        return q, k
    return modeling_llama.apply_rotary_pos_emb(q, k, cos, sin)


def with_more_digits(q, k, cos, sin, unsqueeze_dim=1):
    """The same, rounded once where transformers mostly rounds three times."""
    found = modeling_llama.apply_rotary_pos_emb(q.float(), k.float(), cos.float(), sin.float())
    return found[0].to(q.dtype), found[1].to(k.dtype)


def in_one_answer(q, k, cos, sin, unsqueeze_dim=1):
    return torch.cat(modeling_llama.apply_rotary_pos_emb(q, k, cos, sin), dim=1)


def in_three_parts(q, k, cos, sin, unsqueeze_dim=1):
    return *modeling_llama.apply_rotary_pos_emb(q, k, cos, sin), cos


def in_no_parts(q, k, cos, sin, unsqueeze_dim=1):
    return 1.0


def test_only_what_computes_the_same_is_replaced():
    assert computes_the_same(modeling_llama.apply_rotary_pos_emb)
    assert computes_the_same(modeling_phi3.apply_rotary_pos_emb)
    for other in (
        neighbours_in_pairs,
        keys_alone,
        nothing_of_a_part,
        with_more_digits,
        in_one_answer,
        in_three_parts,
        in_no_parts,
    ):
        assert not computes_the_same(other)
    for other in (lambda q, k: (q, k), lambda *_: ("q", "k")):
        assert not computes_the_same(other)


class Layer(nn.Module):
    """Calls the function of its file, as attention layers of transformers do."""

    def forward(self, q, k, *, shift=0.5):
        cos = torch.full((1, q.shape[2], WHOLE), math.cos(1.0))
        found = apply_rotary_pos_emb(q, k, cos, cos + shift)
        return found[0].sum() + found[1].sum()


class Deaf(nn.Module):
    def forward(self, q):
        return q


apply_rotary_pos_emb = modeling_llama.apply_rotary_pos_emb


def test_layers_get_it_and_their_file_keeps_its_own(monkeypatch):
    model = nn.ModuleList([Layer(), Deaf(), Layer()])
    q, k = numbers(1, 2, 3, WHOLE), numbers(1, 1, 3, WHOLE, seed=1)
    wanted = model[0](q, k), model[0](q, k, shift=0.25)
    assert replace_rotations(model) == 2
    asked = []
    monkeypatch.setattr(rotary, "rotate", lambda *values: asked.append(len(values)) or rotate(*values))
    with torch.no_grad():
        assert torch.equal(model[2](q, k), wanted[0]) and torch.equal(model[2](q, k, shift=0.25), wanted[1])
        assert asked == [3, 3, 3, 3]
        assert torch.equal(Layer()(q, k), wanted[0]) and len(asked) == 4
    assert "forward" not in vars(model[1])
    assert Layer.forward.__globals__["apply_rotary_pos_emb"] is modeling_llama.apply_rotary_pos_emb


def test_a_layer_that_rotates_otherwise_keeps_its_forward(monkeypatch):
    monkeypatch.setitem(Layer.forward.__globals__, "apply_rotary_pos_emb", neighbours_in_pairs)
    layer = Layer()
    assert replace_rotations(nn.ModuleList([layer])) == 0 and "forward" not in vars(layer)
    monkeypatch.delitem(Layer.forward.__globals__, "apply_rotary_pos_emb")
    assert replace_rotations(nn.ModuleList([layer])) == 0


def test_the_layers_of_real_families_are_known():
    assert computes_the_same(modeling_gpt_neox.apply_rotary_pos_emb)  # a part of each head as well
    for attention in (modeling_llama.LlamaAttention, modeling_phi3.Phi3Attention):
        assert rotary._forward_of(attention) is not None
    assert rotary._forward_of(nn.Linear) is None
