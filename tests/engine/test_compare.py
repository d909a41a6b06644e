"""Where two models are compared, and what comes of it, in positions and numbers counted by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from qlora_studio.core.example import Example
from qlora_studio.engine.compare import Probe, agreement, log_probabilities, mean_loss, probe_answer, probe_rows


def test_a_probe_s_targets_are_the_tokens_behind_its_positions():
    assert Probe((10, 11, 12), (0, 1)).targets() == [11, 12]
    assert Probe((10, 11, 12), (1, 2)).targets() == [12], "nothing follows the last"
    assert Probe((10, 11, 12), ()).targets() == []


def test_a_probe_is_cut_behind_the_token_that_its_last_position_predicts():
    probe = Probe((10, 11, 12, 13, 14), (1, 2, 3))
    assert probe.cut(2) == Probe((10, 11, 12, 13), (1, 2))
    assert probe.cut(3) == probe.cut(9) == probe
    assert probe.cut(0) == Probe((), ())


def test_an_answer_is_predicted_from_the_prompt_s_last_token_on_and_its_end_where_it_came_to_one():
    assert probe_answer([7, 8], [1, 2, 3], stopped=False) == Probe((7, 8, 1, 2, 3), (1, 2, 3))
    assert probe_answer([7, 8], [1, 2, 3], stopped=True) == Probe((7, 8, 1, 2, 3), (1, 2, 3, 4))


def test_rows_are_looked_at_where_they_are_trained_until_there_are_so_many_positions():
    rows = [
        Example((1, 2, 3, 4, 5), ((0, 2), (3, 4))),  # nothing stands before the first token
        Example((1, 2, 3), ()),
        Example((6, 7, 8, 9), ((1, 4),)),
        Example((5, 5), ((1, 2),)),
    ]
    first = Probe((1, 2, 3, 4), (0, 2))
    assert probe_rows(rows) == [first, Probe((6, 7, 8, 9), (0, 1, 2)), Probe((5, 5), (0,))]
    assert probe_rows(rows, 4) == [first, Probe((6, 7, 8), (0, 1))]
    assert probe_rows(rows, 2) == [first]
    long = Example(tuple(range(300)), ((1, 300),))
    assert [len(probe.positions) for probe in probe_rows([long])] == [256]


class Counting(nn.Module):
    """Says of each position that the token beside the last one it was given is twice as likely as any other."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.calls = nn.Embedding(4, 2), []

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, use_cache, logits_to_keep):
        self.calls.append((input_ids.tolist(), use_cache, logits_to_keep))
        logits = torch.zeros(1, input_ids.shape[1], 4)
        logits[0, torch.arange(input_ids.shape[1]), (input_ids[0] + 1) % 4] = math.log(2)
        return SimpleNamespace(logits=logits[:, -logits_to_keep:].half())


def test_a_model_is_asked_for_the_compared_positions_alone():
    model = Counting()
    found = log_probabilities(model, [Probe((0, 1, 2, 3), (1, 2)), Probe((), ()), Probe((3, 2, 0, 1, 1), (0, 2, 3))])
    assert model.calls == [([[0, 1, 2]], False, 2), ([[3, 2, 0, 1]], False, 4)]
    assert found.dtype == torch.float32 and found.argmax(-1).tolist() == [2, 3, 0, 1, 2]
    assert found.exp().max(-1).values.tolist() == pytest.approx([0.4] * 5, abs=1e-3)
    assert log_probabilities(model, []).shape == (0, 0)


def test_the_loss_is_the_mean_over_the_tokens_that_follow():
    rows = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]).log()
    assert mean_loss(rows, [Probe((0, 1), (0,)), Probe((1, 2), (0,))]) == pytest.approx(-math.log(0.25 * 0.1) / 2)
    assert mean_loss(rows[:1], [Probe((0,), (0,))]) is None
    assert mean_loss(torch.empty(0, 0), []) is None


def test_two_models_agree_in_their_likeliest_tokens_and_by_a_divergence():
    chatted = torch.tensor([[0.5, 0.5 - 1e-6, 1e-6], [0.2, 0.3, 0.5]]).log()
    exported = torch.tensor([[0.25, 0.75 - 1e-6, 1e-6], [0.2, 0.3, 0.5]]).log()
    same, kl = agreement(chatted, exported)
    assert same == 0.5 and kl == pytest.approx((0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)) / 2, abs=1e-5)
    assert agreement(chatted, chatted) == (1.0, 0.0)
    padded = torch.cat([exported, torch.full((2, 2), 9.0)], -1)
    assert agreement(chatted, padded) == (0.5, pytest.approx(kl)), "padding counts for nothing"
    assert agreement(padded, chatted)[0] == 0.5
    assert agreement(torch.empty(0, 0), torch.empty(0, 0)) == (1.0, 0.0)
