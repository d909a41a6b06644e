"""The loss of each row of a micro-batch: one function for training, the probe and evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from qlora_studio.core.example import IGNORED
from qlora_studio.engine.batches import MicroBatch
from qlora_studio.engine.kernels.loss import CHUNK, next_token_losses

LOSS_TOLERANCE = 5e-3
"""Relative; bf16 logits of a few positions differ by less, a missing soft-cap or logit scale by much more."""


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Dropout off, all else as in training: `eval()` would let a CPU's 4-bit layers be repacked for inference."""
    dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout) and module.training]
    for module in dropouts:
        module.eval()
    try:
        yield
    finally:
        for module in dropouts:
            module.train()


class LossFunction:
    """Next-token loss of a causal model, in nats, by chunks where that is the same mathematics.

    Some architectures scale or cap their logits after the head. Whether this one does is measured on a few tokens at
    the start, not guessed from its name; if so, the model's own logits are used.
    """

    def __init__(self, model: PeftModel) -> None:
        causal: Any = model.get_base_model()
        self.model = model
        self.decoder = causal.get_decoder()
        head = causal.get_output_embeddings()
        self.head: torch.Tensor = head.weight
        self.chunk = CHUNK
        self.chunked = getattr(head, "bias", None) is None and self._agrees()

    def __call__(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Sum over trained positions of ids, labels (batch, length); fp32 scalar."""
        return self._by_row(ids, labels).sum()

    def row_losses(self, batch: MicroBatch) -> torch.Tensor:
        """Sum over the trained positions of each row; fp32 (batch,)."""
        return self._by_row(batch.ids, batch.labels)

    def _by_row(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.chunked:
            hidden = self.decoder(input_ids=ids, use_cache=False).last_hidden_state  # (batch, length, width)
            return next_token_losses(hidden, self.head, labels, self.chunk)
        return self._plain(ids, labels)

    def _plain(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = self.model(input_ids=ids, use_cache=False).logits[:, :-1].float()  # (batch, length - 1, vocab)
        losses = nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="none"
        )
        return losses.view(len(ids), -1).sum(dim=1)

    @torch.no_grad()
    def _agrees(self) -> bool:
        ids = torch.arange(8, device=self.head.device).remainder(self.head.shape[0]).unsqueeze(0)
        with without_dropout(self.model):
            plain = self._plain(ids, ids).sum()
            hidden = self.decoder(input_ids=ids, use_cache=False).last_hidden_state
        chunked = next_token_losses(hidden, self.head, ids, self.chunk).sum()
        return bool((plain - chunked).abs() <= LOSS_TOLERANCE * plain.abs())
