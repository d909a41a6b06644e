"""Where a verdict turns: what is kept of the training, what rounding explains, and the losses in a sentence."""

from __future__ import annotations

import pytest

from qlora_studio.core.events import Checked
from qlora_studio.core.verdict import describe_losses, effect_kept, find_verdict

LOSSES = {"base_loss": 3.0, "chat_loss": 2.0, "loss": 2.0}


def check(**changes):
    return Checked(**{"what": "m", "kl": 0.0, "same_top1": 1.0, "as_chatted": True, "precision": "16-bit", **changes})


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        (LOSSES, 1.0),
        (LOSSES | {"loss": 2.5}, 0.5),
        (LOSSES | {"loss": None}, None),
        (LOSSES | {"base_loss": None}, None),
        (LOSSES | {"chat_loss": None}, None),
        ({"base_loss": 0.0625, "chat_loss": 0.0, "loss": 0.0625}, 0.0),
        ({"base_loss": 0.05, "chat_loss": 0.0, "loss": 0.0}, 1.0),  # as clear as an effect must be
        ({"base_loss": 0.0, "chat_loss": 0.0, "loss": 0.0}, None),
    ],
)
def test_the_share_of_the_training_that_is_kept(changes, kept):
    assert effect_kept(check(**changes)) == kept


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        (LOSSES | {"loss": 2.5}, "agrees"),  # half is kept
        (LOSSES | {"loss": 2.501}, "lost the training"),
        ({"kl": 0.01}, "agrees"),
        ({"kl": 0.0101}, "disagrees"),
        ({"kl": 0.2, "precision": "Q4_K_M"}, "agrees"),
        ({"kl": 0.201, "precision": "Q4_K_M"}, "disagrees"),
        ({"kl": 0.2, "precision": "Q4_K_M", "as_chatted": False}, "differs"),
        ({"kl": 0.02, "precision": "another"}, "disagrees"),
        ({"stops": 3, "stops_kept": 0}, "does not stop"),
        ({"stops": 3, "stops_kept": 1}, "agrees"),
        ({"stops": 0, "stops_kept": 0}, "agrees"),
    ],
)
def test_what_a_comparison_amounts_to(changes, word):
    assert find_verdict(check(**changes)).word == word


@pytest.mark.parametrize("missing", [None, "base_loss", "chat_loss", "loss"])
def test_losses_are_said_where_all_were_measured(missing):
    changes = LOSSES | ({missing: None} if missing else {})
    sentence = " Held-out loss: base 3.000, chat 2.000, exported 2.000; 2 of 3 answers end where the chat's did."
    assert describe_losses(check(**changes, stops=3, stops_kept=2)) == ("" if missing else sentence)
