"""Whether an export answers as the chat did: the comparison's numbers in words, the same on page and terminal.

The limits come from a measurement, `python benchmarks/export.py`, whose table stands in docs/export.md: each lies well
above what a faithful export of its precision shows. A 16-bit one lies below what a broken export shows; coarser ones
cannot, so each layer's own change is looked for in the file as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qlora_studio.core.events import Checked

NOISE_KL: dict[str, float] = {"16-bit": 0.01, "Q8_0": 0.02, "Q6_K": 0.05, "Q5_K_M": 0.1, "Q4_K_M": 0.2}
"""Nats, by precision: up to here a model merged as chatted differs by rounding alone."""
LEAST_EFFECT = 0.5
"""Share of what training took off the held-out loss that every export must keep."""
CLEAR_EFFECT = 0.05
"""Nats. A smaller effect cannot be told from noise on a few hundred tokens."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an export says what was chatted with. One that is `bad` has failed."""

    kind: Literal["good", "warn", "bad"]
    word: str
    sentence: str
    hint: str = ""


def find_verdict(check: Checked) -> Verdict:
    """What a comparison of chat and artefact amounts to."""
    rounding = NOISE_KL["16-bit"]
    limit = NOISE_KL.get(check.precision, rounding) if check.as_chatted else rounding
    kept = effect_kept(check)
    if kept is not None and kept < LEAST_EFFECT:
        return Verdict(
            "bad",
            "lost the training",
            f"The exported model has lost what was trained: of the {_effect(check):.2f} nats that training took off the "
            f"held-out loss, {max(0.0, kept):.0%} are left (base {check.base_loss:.3f}, chat {check.chat_loss:.3f}, "
            f"exported {check.loss:.3f}).",
            "Export it as chatted." if not check.as_chatted else "Export again; if it stays so, please report it.",
        )
    if check.layers_off:
        return Verdict(
            "bad",
            "lost a layer",
            f"In {check.layers_off} of {check.layers} layers the export does not hold what was trained: of the change in "
            f"{check.layer_off}, {check.share_off:.0%} is there where {check.share_wanted:.0%} should be.",
            "Export again; if it stays so, please report it.",
        )
    if check.kl <= limit:
        if check.stops and not check.stops_kept:
            return Verdict("bad", "does not stop", "The exported model does not come to an end where the chat did.")
        but = f", but for the rounding of {check.precision}" if check.kl > rounding else ""
        return Verdict("good", "agrees", f"The exported model answers as the chat did{but}.")
    numbers = f"KL {check.kl:.3f} nats, {check.same_top1:.0%} of the likeliest next tokens the same"
    if check.as_chatted:
        return Verdict(
            "bad",
            "disagrees",
            f"The exported model does not answer as the chat did: {numbers}; rounding explains up to {limit:g} nats.",
            "Export again; if it stays so, please report it.",
        )
    losses = ""
    if check.loss is not None and check.chat_loss is not None:
        better = "better" if check.loss < check.chat_loss else "worse"
        losses = f" On held-out rows it is {better} than the chat: loss {check.loss:.3f} beside {check.chat_loss:.3f}."
    return Verdict(
        "warn",
        "differs",
        f"The exported model answers otherwise than the chat: {numbers}.{losses}",
        "Export again as chatted: that merge answers as the chat did.",
    )


def effect_kept(check: Checked) -> float | None:
    """Which share of the trained effect on held-out rows the artefact shows; None where there is none to be seen."""
    if check.loss is None or check.chat_loss is None or check.base_loss is None or _effect(check) < CLEAR_EFFECT:
        return None
    return (check.base_loss - check.loss) / _effect(check)


def describe_losses(check: Checked) -> str:
    """Held-out loss of base, chat and artefact side by side, as a sentence that follows another; empty without."""
    if check.loss is None or check.chat_loss is None or check.base_loss is None:
        return ""
    return (
        f" Held-out loss: base {check.base_loss:.3f}, chat {check.chat_loss:.3f}, exported {check.loss:.3f}; "
        f"{check.stops_kept} of {check.stops} answers end where the chat's did."
    )


def _effect(check: Checked) -> float:
    """How much training took off the held-out loss, in nats."""
    return (check.base_loss or 0.0) - (check.chat_loss or 0.0)


def could_agree_better(check: Checked) -> bool:
    """Whether the merge that computes with the chat's own weights is still to be tried, and worth it."""
    return find_verdict(check).kind != "good" and not check.as_chatted
