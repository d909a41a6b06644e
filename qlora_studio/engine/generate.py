"""Answers, token by token, from a model in memory. One seed gives one answer, whichever side is asked first."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from qlora_studio.core.chat import Sampling, Side


def choose_side(model: nn.Module, side: Side) -> AbstractContextManager[Any]:
    """The base is the same model with the adapter switched off."""
    return model.disable_adapter() if side == "base" and isinstance(model, PeftModel) else nullcontext()


@torch.inference_mode()
def generate(model: Any, prompt_ids: Sequence[int], stop_ids: Collection[int], sampling: Sampling) -> Iterator[int]:
    """New token ids, one by one, up to `sampling.max_new_tokens` or a stop token, which is not given out."""
    device = model.get_input_embeddings().weight.device
    generator = torch.Generator(device).manual_seed(sampling.seed)
    processors = _processors(sampling)
    seen: Any = torch.tensor([list(prompt_ids)], device=device)  # (1, length)
    step, cache = seen, None
    for _ in range(sampling.max_new_tokens):
        output = model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        scores = processors(seen, output.logits[:, -1].float())  # (1, vocab)
        if sampling.temperature == 0:
            step = scores.argmax(-1, keepdim=True)
        else:
            step = torch.multinomial(scores.softmax(-1), 1, generator=generator)
        token = int(step)
        if token in stop_ids:
            return
        yield token
        seen = torch.cat([seen, step], dim=1)


def _processors(sampling: Sampling) -> LogitsProcessorList:
    """transformers' own processors, in its order."""
    chosen = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        chosen.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature > 0:
        chosen.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            chosen.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            chosen.append(TopPLogitsWarper(sampling.top_p))
    return chosen
