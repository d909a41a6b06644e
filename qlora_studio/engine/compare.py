"""Whether two models say the same: next-token distributions on the same tokens, small enough for any vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qlora_studio.core.example import Example

MOST_POSITIONS = 256
"""Positions compared at most, of each kind: 256 x 150,000 probabilities in fp32 are 147 MiB."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Token ids, and where in them the next token's distribution is compared."""

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    """Ascending; position p predicts `ids[p + 1]`, or what would follow the last."""

    def targets(self) -> list[int]:
        """The tokens that do follow, at the positions that have one."""
        return [self.ids[position + 1] for position in self.positions if position + 1 < len(self.ids)]

    def cut(self, most: int) -> Probe:
        """The same with no more positions than this."""
        positions = self.positions[:most]
        return Probe(self.ids[: positions[-1] + 2] if positions else (), positions)


def probe_answer(prompt: Sequence[int], answer: Sequence[int], *, stopped: bool) -> Probe:
    """The positions that predict an answer's tokens, and its end where it came to one."""
    first, last = len(prompt) - 1, len(prompt) + len(answer) - (0 if stopped else 1)
    return Probe((*prompt, *answer), tuple(range(first, last)))


def probe_rows(examples: Sequence[Example], most: int = MOST_POSITIONS) -> list[Probe]:
    """The trained positions of these rows, from their beginning, until there are so many."""
    probes: list[Probe] = []
    for example in examples:
        positions = tuple(position - 1 for start, end in example.spans for position in range(max(start, 1), end))
        probe = Probe(tuple(example.input_ids), positions).cut(most - sum(len(one.positions) for one in probes))
        if probe.positions:
            probes.append(probe)
    return probes


@torch.inference_mode()
def log_probabilities(model: Any, probes: Sequence[Probe]) -> torch.Tensor:
    """Log-probabilities (positions, vocab), fp32 on the CPU, at all positions of the probes in order."""
    device = model.get_input_embeddings().weight.device
    rows: list[torch.Tensor] = []
    for probe in probes:
        if not probe.positions:
            continue
        first, after = probe.positions[0], probe.positions[-1] + 1
        ids = torch.tensor([probe.ids[:after]], device=device)
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=after - first).logits[0]  # (after - first, vocab)
        wanted = torch.tensor([position - first for position in probe.positions], device=logits.device)
        rows.append(logits[wanted].float().log_softmax(-1).cpu())
    return torch.cat(rows) if rows else torch.empty(0, 0)


def mean_loss(distributions: torch.Tensor, probes: Sequence[Probe]) -> float | None:
    """Mean loss in nats of the tokens that follow, from log-probabilities (positions, vocab); None without any."""
    targets = [target for probe in probes for target in probe.targets()]
    if not targets:
        return None
    return -float(distributions[torch.arange(len(targets)), torch.tensor(targets)].mean())


def agreement(chatted: torch.Tensor, exported: torch.Tensor) -> tuple[float, float]:
    """Share of positions with the same likeliest token, and mean KL(chatted || exported) in nats."""
    if not chatted.numel():
        return 1.0, 0.0
    width = min(chatted.shape[-1], exported.shape[-1])  # padding of the vocabulary may differ
    chatted, exported = chatted[:, :width], exported[:, :width]
    same = (chatted.argmax(-1) == exported.argmax(-1)).float().mean()
    kl = (chatted.exp() * (chatted - exported)).sum(-1).mean()
    return float(same), float(kl)
