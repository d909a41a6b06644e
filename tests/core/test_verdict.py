"""Whether an export answers as the chat did, and which one has failed."""

import pytest

from qlora_studio.core.events import Checked
from qlora_studio.core.verdict import NOISE_KL, could_agree_better, effect_kept, find_verdict

GOOD = Checked(what="merged model", same_top1=0.99, kl=0.001, base_loss=3.0, chat_loss=2.0, loss=2.01)


def changed(**changes: object) -> Checked:
    return GOOD.model_copy(update=changes)


@pytest.mark.parametrize(
    ("changes", "kind", "word"),
    [
        ({}, "good", "agrees"),
        ({"kl": 0.01}, "good", "agrees"),
        ({"kl": 0.021}, "warn", "differs"),
        ({"kl": 0.021, "as_chatted": True}, "bad", "disagrees"),
        ({"kl": 0.2, "as_chatted": True, "precision": "Q4_K_M"}, "good", "agrees"),
        ({"kl": 0.21, "as_chatted": True, "precision": "Q4_K_M"}, "bad", "disagrees"),
        ({"kl": 0.2, "precision": "Q4_K_M"}, "warn", "differs"),
        ({"kl": 5.0}, "warn", "differs"),
        ({"kl": 5.0, "loss": 2.6}, "bad", "lost the training"),
        ({"loss": 2.6, "as_chatted": True}, "bad", "lost the training"),
        ({"kl": 5.0, "loss": 2.6, "chat_loss": 2.99}, "warn", "differs"),
        ({"stops": 3, "stops_kept": 0}, "bad", "does not stop"),
        ({"stops": 3, "stops_kept": 1}, "good", "agrees"),
        ({"base_loss": None, "chat_loss": None, "loss": None}, "good", "agrees"),
    ],
)
def test_numbers_decide(changes, kind, word):
    verdict = find_verdict(changed(**changes))
    assert (verdict.kind, verdict.word) == (kind, word)


def test_rounding_is_named_where_it_is_more_than_that_of_16_bits():
    assert find_verdict(changed(kl=0.1, as_chatted=True, precision="Q4_K_M")).sentence == (
        "The exported model answers as the chat did, but for the rounding of Q4_K_M."
    )
    assert find_verdict(changed(kl=0.01, as_chatted=True, precision="Q8_0")).sentence.endswith("as the chat did.")


def test_a_failed_export_says_by_how_much_and_what_to_do():
    verdict = find_verdict(changed(loss=2.9))
    assert verdict.sentence == (
        "The exported model has lost what was trained: of the 1.00 nats that training took off the held-out loss, 10% "
        "are left (base 3.000, chat 2.000, exported 2.900)."
    )
    assert verdict.hint == "Export it as chatted."
    assert "please report it" in find_verdict(changed(loss=2.9, as_chatted=True)).hint


def test_a_warning_names_the_numbers_and_the_way_out():
    verdict = find_verdict(changed(kl=0.195, same_top1=0.8, loss=1.9))
    assert verdict.sentence == (
        "The exported model answers otherwise than the chat: KL 0.195 nats, 80% of the likeliest next tokens the same. "
        "On held-out rows it is better than the chat: loss 1.900 beside 2.000."
    )
    assert verdict.hint == "Export again as chatted: that merge answers as the chat did."
    assert could_agree_better(changed(kl=0.195)) and not could_agree_better(GOOD)
    assert not could_agree_better(changed(kl=9.0, as_chatted=True))


def test_limits_rise_with_coarser_weights():
    assert list(NOISE_KL.values()) == sorted(NOISE_KL.values())


def test_the_effect_is_a_share_of_what_training_did():
    assert effect_kept(GOOD) == pytest.approx(0.99)
    assert effect_kept(changed(loss=1.5)) == pytest.approx(1.5)
    assert effect_kept(changed(chat_loss=2.96)) is None
