"""Which modules of a model go to the card where its input embeddings stay in the computer's memory."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from qlora_studio.engine import host_embeddings
from qlora_studio.engine.host_embeddings import place_embeddings_on_host

CARD = torch.device("cuda", 0)


class Model(nn.Module):
    """A model whose embeddings lie two modules deep, beside others with names that begin alike."""

    def __init__(self, *, shared: bool) -> None:
        super().__init__()
        inner = nn.Module()
        inner.embed = nn.Embedding(4, 2)
        inner.embed_more = nn.Linear(2, 2)
        inner.layers = nn.ModuleList([nn.Linear(2, 2)])
        self.model, self.norm, self.head = nn.Module(), nn.LayerNorm(2), nn.Linear(2, 4, bias=False)
        self.model.text = inner
        self.model.vision = nn.Linear(2, 2)
        if shared:
            self.head.weight = inner.embed.weight

    def get_input_embeddings(self) -> nn.Module:
        return self.model.text.embed

    def get_output_embeddings(self) -> nn.Module:
        return self.head


@pytest.mark.parametrize(("says", "shared"), [(True, False), (False, True), (True, True), (False, False)])
def test_only_embeddings_that_no_head_shares_stay_behind(monkeypatch, says, shared):
    made = []

    def from_config(config):
        warnings.warn("a new name is coming", FutureWarning, stacklevel=1)
        made.append(Model(shared=shared))
        return made[0]

    monkeypatch.setattr(host_embeddings.AutoModelForCausalLM, "from_config", from_config)
    text = SimpleNamespace(tie_word_embeddings=says)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        places = place_embeddings_on_host(SimpleNamespace(get_text_config=lambda: text), CARD)
    assert {parameter.device.type for parameter in made[0].parameters()} == {"meta"}, "no memory is taken for it"
    beside = ("norm", "head", "model.vision", "model.text.embed_more", "model.text.layers")
    apart = {**dict.fromkeys(beside, CARD), "model.text.embed": "cpu"}
    assert places == ({"": CARD} if says or shared else apart)
