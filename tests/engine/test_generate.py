"""One model answers for both sides; a seed gives one answer; the limits of an answer hold."""

from __future__ import annotations

import pytest
import torch

from qlora_studio.core.chat import Sampling
from qlora_studio.engine.generate import choose_side, generate
from qlora_studio.engine.load import load_base
from tests.engine.conftest import FP32

PROMPT = [5, 6, 7, 8]


@pytest.fixture
def tuned(tiny_adapter_model):
    """A model whose adapter changes what it says."""
    for name, parameter in tiny_adapter_model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(3))
    return tiny_adapter_model.eval()


def answer(model, **sampling) -> list[int]:
    stops = sampling.pop("stops", ())
    return list(generate(model, PROMPT, stops, Sampling(**{"max_new_tokens": 8, "temperature": 0.0, **sampling})))


@torch.inference_mode()
def test_the_base_is_the_model_without_its_adapter(tuned, tiny_folder):
    ids = torch.tensor([PROMPT])
    base = load_base(tiny_folder, FP32).eval()(ids).logits
    with choose_side(tuned, "base"):
        torch.testing.assert_close(tuned(ids).logits, base)
    with choose_side(tuned, "tuned"):
        assert not torch.allclose(tuned(ids).logits, base)
    with choose_side(load_base(tiny_folder, FP32), "base") as nothing:
        assert nothing is None


@torch.inference_mode()
def test_token_by_token_is_what_the_whole_text_says(tuned):
    written = answer(tuned)
    whole = tuned(torch.tensor([PROMPT + written])).logits[0, len(PROMPT) - 1 : -1].argmax(-1)
    assert written == whole.tolist() and len(written) == 8


def test_a_stop_token_ends_an_answer_and_is_not_given_out(tuned):
    written = answer(tuned)
    assert answer(tuned, stops={written[3]}) == written[: written.index(written[3])]
    assert answer(tuned, max_new_tokens=2) == written[:2]


def test_one_seed_gives_one_answer_and_another_another(tuned):
    first, again, other = (answer(tuned, temperature=2.0, seed=seed) for seed in (1, 1, 2))
    assert first == again and first != other
    assert answer(tuned, temperature=2.0, seed=1, top_k=1) == answer(tuned), "of one token the choice is made"
    assert answer(tuned, temperature=2.0, seed=1, top_p=1e-6) == answer(tuned)


def test_a_penalty_keeps_from_repeating(tuned):
    plain, varied = answer(tuned, max_new_tokens=20), answer(tuned, max_new_tokens=20, repetition_penalty=2.0)
    assert len(set(varied)) > len(set(plain))
