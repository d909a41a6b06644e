"""Whether two models say the same: next-token distributions on the same tokens, small enough for any vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

MOST_POSITIONS = 256
"""Positions compared at most: 256 x 150,000 probabilities in fp32 are 147 MiB."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A prompt and an answer to it, both as ids."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@torch.inference_mode()
def answer_log_probabilities(model: Any, probes: Sequence[Probe]) -> torch.Tensor:
    """Log-probabilities (positions, vocab), fp32 on the CPU, at the positions that predict the answers' tokens."""
    device = model.get_input_embeddings().weight.device
    rows: list[torch.Tensor] = []
    left = MOST_POSITIONS
    for probe in probes:
        count = min(len(probe.answer), left)
        if not count:
            continue
        ids = torch.tensor([[*probe.prompt, *probe.answer[:count]]], device=device)
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=count + 1).logits[0, :count]  # (count, vocab)
        rows.append(logits.float().log_softmax(-1).cpu())
        left -= count
    return torch.cat(rows) if rows else torch.empty(0, 0)


def agreement(chatted: torch.Tensor, exported: torch.Tensor) -> tuple[float, float]:
    """Share of positions with the same likeliest token, and mean KL(chatted || exported) in nats."""
    width = min(chatted.shape[-1], exported.shape[-1])  # padding of the vocabulary may differ
    chatted, exported = chatted[:, :width], exported[:, :width]
    same = (chatted.argmax(-1) == exported.argmax(-1)).float().mean()
    kl = (chatted.exp() * (chatted - exported)).sum(-1).mean()
    return float(same), float(kl)
