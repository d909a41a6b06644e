"""Storages are counted while they live, before and after the turn from forward to backward."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from qlora_studio.engine.stand_ins import (
    RANK,
    AdaptedLinear,
    FrozenLinear,
    GradientKept,
    GroupedProduct,
    StorageCount,
    build,
    features_of,
    shorten,
    without_numbers,
)
from tests.engine.architectures import config_of


def test_the_most_before_the_turn_and_after_it_are_told_apart():
    known = torch.ones(1000)
    count = StorageCount([known])
    with count:
        kept = torch.ones(250)
        passing = torch.ones(500) + 1
        del passing
        count.turning = True
        later = torch.ones(100)
        del later
        last, view = torch.ones(50), kept[:10]
        known.add_(1)
    assert count.turn == (1000, 1000 + 2 * 2000)
    assert count.most == 1000 + 400
    assert count.now == 1000 + 200
    del last, view
    assert count.now == 1000 and len(kept) == 250


def test_a_layer_in_four_bits_keeps_half_a_byte_a_number_and_one_in_the_dtype_it_has():
    four, whole = FrozenLinear(3, 5, True), FrozenLinear(3, 5, False)
    assert (four.weight.dtype, tuple(four.weight.shape)) == (torch.uint8, (8,))
    assert tuple(FrozenLinear(4, 5, True).weight.shape) == (10,)
    assert (whole.weight.dtype, tuple(whole.weight.shape)) == (torch.float32, (5, 3))
    assert not four.weight.requires_grad and not whole.weight.requires_grad
    for layer in (four, whole):
        made = layer.dense_weight(torch.bfloat16)
        assert (made.dtype, tuple(made.shape)) == (torch.bfloat16, (5, 3))
        x = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
        layer(x).sum().backward()
        assert tuple(layer(x).shape) == (2, 5) and x.grad.dtype == torch.bfloat16


def test_a_transposed_layer_has_its_outputs_behind_its_inputs():
    assert features_of(Conv1D(7, 3)) == (3, 7) and features_of(nn.Linear(3, 7)) == (3, 7)
    adapted = AdaptedLinear(Conv1D(7, 3), True)
    a, b = adapted.lora_A["default"].weight, adapted.lora_B["default"].weight
    assert (tuple(a.shape), tuple(b.shape), a.dtype) == ((RANK, 3), (7, RANK), torch.float32)
    assert tuple(adapted(torch.ones(2, 3)).shape) == (2, 7)


def test_rows_of_one_expert_are_copied_for_the_moment_in_both_directions():
    x, weight = torch.ones(6, 4, requires_grad=True), torch.ones(2, 9, 4)
    count = StorageCount([x, weight])
    with count:
        out = GroupedProduct.apply(x, weight, 9, 3)
    assert tuple(out.shape) == (6, 9) and count.now == 4 * 6 * 9
    assert count.most == count.now + 4 * 3 * 9, "three tokens as wide as what comes out"
    gradient = torch.ones(6, 9)
    count = StorageCount([x, weight, out, gradient])
    with count:
        (back,) = torch.autograd.grad(out, x, gradient)
    assert tuple(back.shape) == (6, 4) and count.most == 4 * (6 * 4 + 3 * 9)


def test_the_gradient_of_the_loss_is_there_from_the_start():
    hidden = torch.ones(5, 4, dtype=torch.bfloat16, requires_grad=True)
    count = StorageCount([hidden])
    with count:
        loss = GradientKept.apply(hidden)
    assert (tuple(loss.shape), loss.item(), count.now) == ((), 0, 5 * 4 * 2 + 2)
    loss.backward()
    assert hidden.grad.shape == hidden.shape


@pytest.mark.parametrize(
    ("family", "kinds"), [("llama", None), ("gemma2", ["sliding_attention", "full_attention", "sliding_attention"])]
)
def test_a_short_copy_has_fewer_layers_a_small_vocabulary_and_leaves_the_config(family, kinds):
    config = config_of(family)
    before = config.to_dict()
    short = shorten(config, 3)
    assert (short.num_hidden_layers, short.vocab_size, short.pad_token_id, short.use_cache) == (3, 256, None, False)
    assert (getattr(short, "layer_types", None), config.to_dict()) == (kinds, before)


def test_a_copy_ties_its_weights_as_the_model_does():
    config = config_of("llama")
    config.tie_word_embeddings = True
    with without_numbers():
        model = build(shorten(config, 2), torch.bfloat16)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.dtype == torch.bfloat16
