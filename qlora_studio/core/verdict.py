"""Whether an export answers as the chat did: the comparison's numbers in words, the same on page and terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qlora_studio.core.events import Checked

CLOSE_KL = 0.02
"""Nats. Below this the exported model's next-token distributions are those of the chat but for rounding."""
FAR_KL = 0.1
"""Nats. From here on other words are chosen often enough that a person reads another model."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an export says what was chatted with."""

    kind: Literal["good", "warn", "bad"]
    word: str
    says: str


def find_verdict(check: Checked) -> Verdict:
    """What a comparison of chat and artefact amounts to: the distance of their distributions decides."""
    if check.kl >= FAR_KL or (check.answers and check.identical_answers == 0 and check.kl >= CLOSE_KL):
        return Verdict("bad", "disagrees", "The exported model does not answer as the chat did.")
    if check.kl >= CLOSE_KL:
        return Verdict("warn", "differs a little", "Some answers of the exported model differ from the chat's.")
    return Verdict("good", "agrees", "The exported model answers as the chat did.")


def could_agree_better(check: Checked) -> bool:
    """Whether the merge that computes with the chat's own weights is still to be tried, and worth it."""
    return find_verdict(check).kind != "good" and not check.what.endswith("as chatted")
