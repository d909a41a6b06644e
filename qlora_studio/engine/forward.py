"""The loss of each row of a micro-batch: one function for training, the probe and evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import bitsandbytes as bnb
import torch
from peft import PeftModel
from torch import nn

from qlora_studio.engine.batches import Layout, MicroBatch
from qlora_studio.engine.kernels.dropout import RowNoise
from qlora_studio.engine.kernels.loss import CHUNK, Targets, find_targets, next_token_losses, sum_by_row
from qlora_studio.engine.packing import find_layout

LOGIT_STEPS = 4
"""Of the compute dtype: how far logits and hidden states times head may lie apart, relative. It is the same product."""
RANDOM_TOLERANCE = 5e-3
"""Of the loss, where a model leaves something out at random and no two passes are alike."""


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Dropout and noise off, all else as in training: `eval()` would let a CPU's 4-bit layers be repacked for inference."""
    dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout | RowNoise) and module.training]
    for module in dropouts:
        module.eval()
    try:
        yield
    finally:
        for module in dropouts:
            module.train()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Nothing is left out at random, also by layers that look at their mode themselves; 4-bit layers stay as in training,
    for a CPU repacks them for inference."""
    modules = [module for module in model.modules() if module.training and not isinstance(module, bnb.nn.Linear4bit)]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module in modules:
            module.training = True


class LossFunction:
    """Next-token loss of a causal model, in nats, by chunks where that is the same mathematics.

    Some architectures scale or cap their logits after the head. Whether this one does is measured on a few tokens at
    the start, not guessed from its name; if so, the model's own logits are used. Whether rows may be packed is measured
    likewise, unless `pack` is false.
    """

    def __init__(self, model: PeftModel, *, pack: bool = True) -> None:
        causal: Any = model.get_base_model()
        self.model = model
        self.decoder = causal.get_decoder()
        head = causal.get_output_embeddings()
        self.head: torch.Tensor = head.weight
        self.chunk = CHUNK
        self.chunked = getattr(head, "bias", None) is None and self._agrees()
        self.layout = Layout(self.head.device)
        self.padded_because: str | None = None
        """Why rows are padded; None where they are packed, or where nobody asked for it."""
        if pack:
            with without_dropout(model):
                self.layout, self.padded_because = find_layout(self.decoder, self.head)

    def __call__(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Sum over trained positions of ids, labels (batch, length), IGNORED where nothing is trained; fp32 scalar."""
        starts = range(0, ids.numel(), ids.shape[1])
        targets = find_targets(labels.tolist(), starts).sent(lambda tensor: tensor.to(ids.device))
        batch = MicroBatch(
            tuple(range(len(ids))), ids, tuple((start, start + ids.shape[1]) for start in starts), targets
        )
        return self.row_losses(batch).sum()

    def row_losses(self, batch: MicroBatch) -> torch.Tensor:
        """Sum over the trained positions of each row; fp32 (rows,)."""
        if not self.chunked:
            return self._plain(batch.inputs, batch.targets)
        hidden = self.decoder(**batch.inputs, use_cache=False).last_hidden_state  # (batch, length, width)
        return next_token_losses(hidden, self.head, batch.targets, self.chunk)

    def _plain(self, inputs: dict[str, Any], targets: Targets) -> torch.Tensor:
        logits = self.model(**inputs, use_cache=False).logits.flatten(0, 1)  # (tokens, vocab)
        trained = logits.index_select(0, targets.places).float()
        return sum_by_row(nn.functional.cross_entropy(trained, targets.tokens, reduction="none"), targets)

    @torch.no_grad()
    def _agrees(self) -> bool:
        """Whether the model's logits are its hidden states times the head, and nothing more."""
        ids = torch.tensor([[number % self.head.shape[0] for number in range(8)]], device=self.head.device)
        with without_dropout(self.model):
            plain, again = (self.model(input_ids=ids, use_cache=False).logits[0] for _ in range(2))  # (8, vocab)
            hidden = self.decoder(input_ids=ids, use_cache=False).last_hidden_state[0]
        product, steps = hidden @ self.head.t(), LOGIT_STEPS * torch.finfo(hidden.dtype).eps
        if _apart(again, plain) <= steps:
            return _apart(product, plain) <= steps
        losses = [nn.functional.cross_entropy(logits[:-1].float(), ids[0, 1:]) for logits in (plain, product)]
        return bool((losses[0] - losses[1]).abs() <= RANDOM_TOLERANCE * losses[0])


def _apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The distance of two tensors, relative to the second."""
    return float((found.float() - wanted.float()).norm() / wanted.float().norm().clamp_min(1e-30))
