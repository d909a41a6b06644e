"""Dropout and noise from a seed per row: what is drawn depends on run, step, row and layer, and on nothing else."""

from __future__ import annotations

import hashlib
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from qlora_studio.engine.kernels import dropout
from qlora_studio.engine.kernels.dropout import (
    RowDropout,
    RowNoise,
    RowSeeds,
    ThinnedProduct,
    add_noise,
    find_row_seeds,
)

SEED = 16161448646712740
TWO = (("7:1:0", "7:1:1"), ((0, 3), (4, 9)))
"""Two rows of 3 and 5 tokens, and a token of padding behind each."""


def test_the_seeds_of_a_micro_batch_are_run_step_and_row():
    seeds = RowSeeds()
    assert (seeds.seeds, seeds.spans) == ((), ())
    seeds.set(7, 3, SimpleNamespace(rows=(4, 2), spans=((0, 5), (5, 8))))
    assert (seeds.seeds, seeds.spans) == (("7:3:4", "7:3:2"), ((0, 5), (5, 8)))


def test_a_row_s_mask_is_the_same_wherever_it_lies_and_another_for_other_rows_and_layers():
    x = torch.empty(10, 50)
    both = RowSeeds(*TWO).keep_mask(x, 2, 0.5)
    alone = RowSeeds(("7:1:1",), ((1, 6),)).keep_mask(x[:7], 2, 0.5)
    assert torch.equal(both[4:9], alone[1:6]) and both.dtype == torch.bool
    assert not both[3].any() and not both[9].any() and not alone[0].any() and not alone[6].any()
    assert not torch.equal(both[4:7], both[0:3])
    assert not torch.equal(RowSeeds(*TWO).keep_mask(x, 3, 0.5), both)
    again = RowSeeds(*TWO)
    assert torch.equal(again.keep_mask(x, 2, 0.5), both) and torch.equal(again.keep_mask(x, 2, 0.5), both)


@pytest.mark.parametrize("share", [0.1, 0.9, 1.0])
def test_so_large_a_share_stays(share):
    mask = RowSeeds(("1:1:1",), ((0, 200),)).keep_mask(torch.empty(200, 100), 0, share)
    assert float(mask.float().mean()) == pytest.approx(share, abs=0.01)


def test_in_how_many_pieces_a_row_is_drawn_is_part_of_its_numbers(monkeypatch):
    """So it is a constant: a plan that was resumed would otherwise draw others."""
    assert dropout.DRAWN_AT_ONCE == 64
    seeds, x = RowSeeds(("1:1:1",), ((0, 100),)), torch.empty(100, 3)
    generator = seeds.generator("1:1:1:5", x.device)
    expected = torch.cat([torch.empty(rows, 3).bernoulli_(0.5, generator=generator) for rows in (64, 36)])
    assert torch.equal(seeds.keep_mask(x, 5, 0.5), expected.bool())


def test_a_generator_begins_anew_for_each_name_and_is_kept_for_its_device():
    seeds = RowSeeds()
    cpu = torch.device("cpu")
    first = torch.rand(3, generator=seeds.generator("a", cpu))
    assert not torch.equal(torch.rand(3, generator=seeds.generator("b", cpu)), first)
    assert torch.equal(torch.rand(3, generator=seeds.generator("a", cpu)), first)
    seed = seeds.generator("7:1:0:2", cpu).initial_seed()
    assert seed == int.from_bytes(hashlib.blake2b(b"7:1:0:2", digest_size=7).digest(), "little")
    assert seed == SEED, "a run that is resumed by a later version draws the same numbers"
    assert list(seeds.generators) == [cpu] and seeds.generator("c", cpu) is seeds.generators[cpu]


def test_what_is_left_is_made_up_for_and_torch_s_own_dropout_runs_without_seeds():
    seeds = RowSeeds(("1:1:0",), ((0, 6),))
    layer = RowDropout(0.25, 1, seeds)
    x = torch.full((2, 3, 8), 3.0)
    out, mask = layer(x), layer.mask(torch.empty(6, 8))
    assert torch.equal(out, torch.where(mask.view(2, 3, 8), 4.0, 0.0)) and out.shape == x.shape
    assert torch.equal(mask, seeds.keep_mask(torch.empty(6, 8), 1, 0.75)) and layer.is_drawn_again
    assert torch.equal(layer.eval()(x), x) and not layer.is_drawn_again
    plain = RowDropout(0.25, 1, RowSeeds())
    torch.manual_seed(0)
    expected = nn.functional.dropout(x, 0.25)
    torch.manual_seed(0)
    assert torch.equal(plain(x), expected) and not plain.is_drawn_again


@pytest.mark.parametrize("input_gradient", [True, False])
def test_a_thinned_product_has_its_gradients_and_keeps_its_input_as_it_is(input_gradient):
    layer = RowDropout(0.25, 1, RowSeeds(("1:1:0",), ((0, 6),)))
    x, a = torch.randn(6, 8, requires_grad=input_gradient), torch.randn(2, 8, requires_grad=True)
    out, upstream = ThinnedProduct.apply(x, a, layer), torch.randn(6, 2)
    assert out.grad_fn.saved_tensors[0].data_ptr() == x.data_ptr()
    out.backward(upstream)
    found = (x.grad, a.grad)
    x2, a2 = x.detach().clone().requires_grad_(), a.detach().clone().requires_grad_()
    wanted = (x2 * layer.mask(x2) / 0.75) @ a2.t()
    wanted.backward(upstream)
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(found[1], a2.grad)
    if input_gradient:
        torch.testing.assert_close(found[0], x2.grad)
    else:
        assert found[0] is None


def test_noise_is_bounded_by_a_row_s_own_size_and_leaves_padding_and_evaluation():
    noise = RowNoise(5.0, RowSeeds(*TWO))
    embedded = torch.ones(2, 5, 4)
    noisy = noise(embedded)
    assert noisy.shape == embedded.shape and torch.equal(embedded, torch.ones(2, 5, 4))
    added = (noisy - embedded).view(10, 4)
    for start, end in TWO[1]:
        most = 5.0 / math.sqrt((end - start) * 4)
        assert 0.5 * most < float(added[start:end].abs().max()) <= most * 1.0001
        assert float(added[start:end].min()) < 0 < float(added[start:end].max())
    assert not added[3].any() and not added[9].any()
    assert torch.equal(noise(embedded), noisy)
    alone = RowNoise(5.0, RowSeeds(("7:1:1",), ((0, 5),)))(torch.ones(1, 5, 4))
    torch.testing.assert_close(alone.view(5, 4), noisy.view(10, 4)[4:9])
    assert noise.eval()(embedded) is embedded and RowNoise(5.0, RowSeeds())(embedded) is embedded


class Model(nn.Module):
    def __init__(self, *modules) -> None:
        super().__init__()
        self.embeddings, self.rest = nn.Embedding(9, 4), nn.ModuleList(modules)

    def get_input_embeddings(self):
        return self.embeddings


def test_noise_is_put_on_the_embeddings_with_the_model_s_own_seeds():
    shared = RowSeeds(("1:1:0",), ((0, 3),))
    model, ids = Model(RowDropout(0.5, 0, shared)), torch.tensor([[1, 2, 3]])
    plain = model.embeddings(ids)
    add_noise(model, 0)
    assert torch.equal(model.embeddings(ids), plain) and find_row_seeds(model) is shared
    add_noise(model, 2.0)
    assert model.embeddings.noise.row_seeds is shared and model.embeddings.noise.alpha == 2.0
    assert torch.equal(model.embeddings(ids), model.embeddings.noise(plain)) and not torch.equal(
        model.embeddings(ids), plain
    )
    bare = Model()
    assert find_row_seeds(bare) is None
    add_noise(bare, 2.0)
    assert find_row_seeds(bare) is bare.embeddings.noise.row_seeds
    assert torch.equal(bare.embeddings(ids), nn.functional.embedding(ids, bare.embeddings.weight))
