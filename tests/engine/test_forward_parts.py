"""When dropout is off, when a model's own logits are taken, and what the loss of rows comes to, in numbers by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import bitsandbytes as bnb
import pytest
import torch
from torch import nn

from qlora_studio.engine import forward
from qlora_studio.engine.forward import LOGIT_STEPS, LossFunction, evaluating, without_dropout
from qlora_studio.engine.kernels.dropout import RowDropout, RowSeeds

HEAD = torch.eye(4)


def test_dropout_that_is_on_is_off_for_a_while_and_nothing_else_changes():
    model = nn.ModuleDict({"drop": nn.Dropout(0.5), "row": RowDropout(0.5, 0, RowSeeds()), "norm": nn.BatchNorm1d(2)})
    model["off"] = nn.Dropout(0.5).eval()

    def training():
        return {name: module.training for name, module in model.items()}

    on = {"drop": True, "row": True, "norm": True, "off": False}
    assert training() == on
    with pytest.raises(KeyError), without_dropout(model):
        assert training() == {"drop": False, "row": False, "norm": True, "off": False}
        raise KeyError
    assert training() == on and model.training


class Decoder(nn.Module):
    """Hidden states that are one at each token's own number: the head says which token was read."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = []

    def forward(self, input_ids, use_cache):
        self.asked.append((input_ids.tolist(), use_cache))
        return SimpleNamespace(last_hidden_state=HEAD[input_ids])


class Causal(nn.Module):
    """A model whose logits are the decoder's hidden states, multiplied after the head."""

    def __init__(self, factor: float, *, bias: bool = False) -> None:
        super().__init__()
        self.decoder, self.factor = Decoder(), factor
        self.head = nn.Linear(4, 4, bias=bias)
        self.head.weight = nn.Parameter(HEAD.clone(), requires_grad=False)
        if bias:
            nn.init.zeros_(self.head.bias)

    def get_base_model(self):
        return self

    def get_decoder(self):
        return self.decoder

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, use_cache):
        hidden = self.decoder(input_ids=input_ids, use_cache=use_cache).last_hidden_state
        return SimpleNamespace(logits=self.head(hidden) * self.factor)


LOG = math.log(3 + math.e)
"""Minus the log-probability of a token that was not read; of the one that was it is one less."""


@pytest.mark.parametrize(
    ("factor", "bias", "chunked"), [(1.0, False, True), (1.001, False, False), (1.1, False, False), (1.0, True, False)]
)
def test_chunks_are_taken_where_the_model_does_nothing_after_its_head(factor, bias, chunked):
    found = LossFunction(Causal(factor, bias=bias), pack=False)
    assert found.chunked == chunked and found.padded_because is None and not found.layout.packed


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_the_loss_is_the_sum_over_trained_tokens_of_what_follows(factor):
    found = LossFunction(Causal(factor), pack=False)
    ids = torch.tensor([[0, 1, 1, 3], [2, 2, 0, 0]])
    labels = torch.tensor([[0, 1, 1, -100], [-100, 2, -100, -100]])
    # after 0 comes 1, after 1 comes 1 itself; after 2 comes 2 itself
    log = math.log(3 + math.exp(factor))
    wanted = log + (log - factor) + (log - factor)
    assert found(ids, labels).item() == pytest.approx(wanted, rel=1e-5)
    asked = found.decoder.asked[-1]
    assert asked == (ids.tolist(), False)


def test_rows_are_packed_unless_nobody_asks_for_it(monkeypatch):
    seen = []

    def find(decoder, head):
        seen.append(decoder.training)
        return "layout", "it has no rows"

    monkeypatch.setattr(forward, "find_layout", find)
    found = LossFunction(Causal(1.0))
    assert (found.layout, found.padded_because) == ("layout", "it has no rows") and seen == [True]
    assert LossFunction(Causal(1.0), pack=False).padded_because is None and len(seen) == 1


@pytest.mark.parametrize(("steps", "chunked"), [(0.5, True), (2.0, False)])
@pytest.mark.parametrize("sign", [1, -1])
def test_logits_may_lie_apart_by_some_steps_of_their_dtype(steps, chunked, sign):
    """A loss would hardly notice: a tiny model's is the logarithm of its vocabulary whatever its logits are scaled by."""
    apart = steps * LOGIT_STEPS * torch.finfo(torch.float32).eps
    assert LossFunction(Causal(1 + sign * apart), pack=False).chunked == chunked


@pytest.mark.parametrize(("factor", "chunked"), [(1.0, True), (1.001, True), (1.1, False)])
def test_a_model_with_logits_that_are_never_the_same_is_judged_by_its_loss(factor, chunked):
    model, noise = Causal(factor), iter((1e-4, 0.0))
    plain = model.forward
    model.forward = lambda **inputs: SimpleNamespace(logits=plain(**inputs).logits + next(noise))
    assert LossFunction(model, pack=False).chunked == chunked


def test_nothing_is_random_in_an_evaluation_and_all_is_as_it_was_afterwards():
    inner = nn.ModuleDict({"drop": nn.Dropout(0.5), "four": bnb.nn.Linear4bit(64, 64), "off": nn.Linear(1, 1)})
    model = nn.ModuleDict({"inner": inner}).train()
    inner["off"].eval()
    with pytest.raises(KeyError), evaluating(model):
        assert [name for name, module in model.named_modules() if module.training] == ["inner.four"]
        raise KeyError
    assert [name for name, module in model.named_modules() if not module.training] == ["inner.off"]
