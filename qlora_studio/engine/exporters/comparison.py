"""An artefact beside the chat: the same prompts, the same ids, and how far the answers are from each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qlora_studio.core import events as ev
from qlora_studio.core.chat import Sampling
from qlora_studio.core.conversation import Turn
from qlora_studio.core.errors import StudioError
from qlora_studio.data.render.prompt import RenderOptions, prompt_ids, stop_ids
from qlora_studio.engine.compare import Probe, agreement, answer_log_probabilities
from qlora_studio.engine.generate import generate
from qlora_studio.engine.tokenizer import ChatTokenizer

GREEDY = Sampling(temperature=0.0, max_new_tokens=64)
"""Short and without chance: what is compared must not depend on it."""


@dataclass(frozen=True, slots=True)
class ChatRecord:
    """What a run answered in chat."""

    prompts: tuple[str, ...]
    probes: tuple[Probe, ...]
    """Each prompt and its answer, as ids."""
    log_probabilities: torch.Tensor
    """(positions, vocab) fp32 on the CPU, at the positions that predict the answers' tokens."""
    options: RenderOptions


def record_chat(model: Any, tokenizer: ChatTokenizer, options: RenderOptions, prompts: Sequence[str]) -> ChatRecord:
    """Asks the model these prompts, each a conversation of its own, and keeps what it says."""
    probes = []
    for prompt in prompts:
        ids = _ids(prompt, tokenizer, options)
        probes.append(Probe(ids, tuple(generate(model, ids, stop_ids(tokenizer), GREEDY))))
    return ChatRecord(tuple(prompts), tuple(probes), answer_log_probabilities(model, probes), options)


def compare_with_chat(
    record: ChatRecord, model: Any, tokenizer: ChatTokenizer, what: str, emit: Callable[[ev.Event], None]
) -> None:
    """Asks the artefact the same and emits its answers and the verdict on `what`.

    Raises a StudioError where its tokenizer writes a prompt in other ids.
    """
    same, kl = agreement(record.log_probabilities, answer_log_probabilities(model, record.probes))
    identical = 0
    for prompt, probe in zip(record.prompts, record.probes, strict=True):
        ids = _ids(prompt, tokenizer, record.options)
        if ids != probe.prompt:
            raise StudioError(
                "The exported tokenizer writes this prompt differently from training.",
                "Report this: it should be impossible.",
            )
        answer = tuple(generate(model, ids, stop_ids(tokenizer), GREEDY))
        identical += answer == probe.answer
        emit(ev.SampleWritten(step=0, prompt=prompt, answer=tokenizer.decode(answer), side="merged"))
    emit(ev.Checked(what=what, same_top1=same, kl=kl, identical_answers=identical, answers=len(record.probes)))


def _ids(prompt: str, tokenizer: ChatTokenizer, options: RenderOptions) -> tuple[int, ...]:
    return tuple(prompt_ids([Turn("user", prompt)], tokenizer, options=options))
