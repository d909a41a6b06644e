"""An artefact beside the chat: the same prompts and held-out rows, the same ids, and how far apart the two are.

The chat's side is recorded and kept as files, so that the artefact is asked in a process that never saw the chat's model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from qlora_studio.core import events as ev
from qlora_studio.core.chat import Sampling
from qlora_studio.core.conversation import Turn
from qlora_studio.core.errors import StudioError
from qlora_studio.core.example import Example
from qlora_studio.data.render.prompt import RenderOptions, prompt_ids, stop_ids
from qlora_studio.engine.compare import Probe, agreement, log_probabilities, mean_loss, probe_answer, probe_rows
from qlora_studio.engine.generate import generate
from qlora_studio.engine.layerwise import LayerwiseModel
from qlora_studio.engine.strength import Strength
from qlora_studio.engine.tokenizer import ChatTokenizer

Emit = Callable[[ev.Event], None]
GREEDY = Sampling(temperature=0.0, max_new_tokens=64)
"""Short and without chance: what is compared must not depend on it."""
RECORD, DISTRIBUTIONS = "chat.json", "chat.safetensors"


@dataclass(frozen=True, slots=True)
class Answer:
    """A prompt, as ids, and what was answered."""

    text: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    stopped: bool
    """Whether it came to its end by itself."""

    @property
    def probe(self) -> Probe:
        return probe_answer(self.prompt, self.answer, stopped=self.stopped)


@dataclass(frozen=True, slots=True)
class ArtefactAnswers:
    """What a comparison needs of an artefact."""

    answers: tuple[str | None, ...]
    """To each prompt of the record; None where it is another than the chat's and was not written out."""
    identical: int
    """How many are the chat's to the last token."""
    log_probabilities: torch.Tensor
    """(positions, vocab) at the record's probes."""


@dataclass(frozen=True, slots=True)
class ChatRecord:
    """What a run said in chat."""

    answers: tuple[Answer, ...]
    rows: tuple[Probe, ...]
    """Held-out rows, at their trained positions."""
    log_probabilities: torch.Tensor
    """(positions, vocab) fp32 on the CPU, at the positions of the answers, then of the rows."""
    base_loss: float | None
    """Mean loss of the rows without the adapter; None where the run holds nothing out."""
    options: RenderOptions
    template: str
    stops: tuple[int, ...]
    """Ids that end an answer."""

    @property
    def probes(self) -> tuple[Probe, ...]:
        return (*(answer.probe for answer in self.answers), *self.rows)

    @property
    def chat_loss(self) -> float | None:
        """Mean loss of the rows with the adapter."""
        return self.loss(self.log_probabilities)

    def loss(self, distributions: torch.Tensor) -> float | None:
        """Mean loss of the rows, from distributions at all of the record's positions."""
        before = sum(len(answer.probe.positions) for answer in self.answers)
        return mean_loss(distributions[before:], self.rows)

    def save(self, folder: Path) -> None:
        """Writes the record into an empty folder."""
        save_file({"log_probabilities": self.log_probabilities.contiguous()}, folder / DISTRIBUTIONS)
        values = asdict(self)
        del values["log_probabilities"]
        (folder / RECORD).write_text(json.dumps(values), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> ChatRecord:
        """The record in a folder that `save` has written."""
        values = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        answers = [
            Answer(one["text"], tuple(one["prompt"]), tuple(one["answer"]), one["stopped"]) for one in values["answers"]
        ]
        return cls(
            answers=tuple(answers),
            rows=tuple(Probe(tuple(row["ids"]), tuple(row["positions"])) for row in values["rows"]),
            log_probabilities=load_file(folder / DISTRIBUTIONS)["log_probabilities"],
            base_loss=values["base_loss"],
            options=RenderOptions(**values["options"]),
            template=values["template"],
            stops=tuple(values["stops"]),
        )


@dataclass(frozen=True, slots=True)
class ChatModel:
    """A model in memory, with its tokenizer and how its prompts are rendered."""

    model: Any
    tokenizer: ChatTokenizer
    options: RenderOptions

    def answer(self, text: str) -> Answer:
        """What it answers to a prompt of its own conversation, without chance."""
        ids = tuple(prompt_ids([Turn("user", text)], self.tokenizer, options=self.options))
        answer = tuple(generate(self.model, ids, stop_ids(self.tokenizer), GREEDY))
        return Answer(text, ids, answer, len(answer) < GREEDY.max_new_tokens)


def record_chat(chat: ChatModel, prompts: Sequence[str], held_out: Sequence[Example] = ()) -> ChatRecord:
    """Asks the chat these prompts and the held-out rows, with and without its adapter, and keeps what it says."""
    answers, rows = tuple(chat.answer(prompt) for prompt in prompts), tuple(probe_rows(held_out))
    base_loss = None
    if rows and isinstance(chat.model, PeftModel):
        with chat.model.disable_adapter():
            base_loss = mean_loss(log_probabilities(chat.model, rows), rows)
    return ChatRecord(
        answers=answers,
        rows=rows,
        log_probabilities=log_probabilities(chat.model, [*(answer.probe for answer in answers), *rows]),
        base_loss=base_loss,
        options=chat.options,
        template=chat.tokenizer.template,
        stops=tuple(sorted(stop_ids(chat.tokenizer))),
    )


def check_words(record: ChatRecord, tokenizer: ChatTokenizer) -> None:
    """Raises a StudioError where the artefact would write or end a conversation otherwise than training did."""
    if tokenizer.template != record.template:
        raise _other_words("chat template is not that of training")
    if tuple(sorted(stop_ids(tokenizer))) != record.stops:
        raise _other_words("answers end with other tokens than in training")
    for answer in record.answers:
        ids = tuple(prompt_ids([Turn("user", answer.text)], tokenizer, options=record.options))
        if ids != answer.prompt:
            raise _other_words("tokenizer writes a prompt in other tokens than training")


def _other_words(what: str) -> StudioError:
    return StudioError(f"The exported model's {what}.", "Report this: it should be impossible.")


def compare(record: ChatRecord, distributions: torch.Tensor, like: ev.Checked) -> ev.Checked:
    """`like` with the numbers of a comparison: the artefact's distributions beside the chat's, at the same positions."""
    same, kl = agreement(record.log_probabilities, distributions)
    ended = kept = at = 0
    for answer in record.answers:
        at += len(answer.probe.positions)
        if answer.stopped:
            ended += 1
            kept += int(distributions[at - 1].argmax()) in record.stops
    return like.model_copy(
        update={
            "same_top1": same,
            "kl": kl,
            "positions": len(distributions),
            "stops": ended,
            "stops_kept": kept,
            "base_loss": record.base_loss,
            "chat_loss": record.chat_loss,
            "loss": record.loss(distributions),
        }
    )


def ask_model(artefact: ChatModel, record: ChatRecord) -> ArtefactAnswers:
    """Has a model in memory answer what the chat was asked."""
    answers = [artefact.answer(chat.text).answer for chat in record.answers]
    identical = sum(answer == chat.answer for answer, chat in zip(answers, record.answers, strict=True))
    texts = tuple(artefact.tokenizer.decode(answer) for answer in answers)
    return ArtefactAnswers(texts, identical, log_probabilities(artefact.model, record.probes))


def ask_layers(model: LayerwiseModel, tokenizer: ChatTokenizer, record: ChatRecord, emit: Emit) -> ArtefactAnswers:
    """The same of a model whose weights stay in their files.

    It writes nothing: an answer without chance is the chat's if and only if each of the chat's tokens is the likeliest
    one after those before it.
    """
    found = model.log_probabilities(
        record.probes, lambda done, total: emit(ev.Advanced(done=done, total=total, unit="layers"))
    )
    answers, at = [], 0
    for chat in record.answers:
        likeliest = found[at : at + len(chat.probe.positions)].argmax(-1).tolist()
        at += len(chat.probe.positions)
        written, last = likeliest[: len(chat.answer)], likeliest[len(chat.answer) :]
        same = written == list(chat.answer) and all(one in record.stops for one in last)
        answers.append(tokenizer.decode(chat.answer) if same else None)
    return ArtefactAnswers(tuple(answers), sum(answer is not None for answer in answers), found)


def look_at_layers(like: ev.Checked, strengths: Iterable[Strength]) -> ev.Checked:
    """`like` with what was found of each layer's trained change in the file."""
    found = list(strengths)
    off = sorted((one for one in found if one.is_off), key=lambda one: -abs(one.share - one.expected))
    first = {"layer_off": off[0].layer, "share_off": off[0].share, "share_wanted": off[0].expected} if off else {}
    return like.model_copy(update={"layers": len(found), "layers_off": len(off), **first})


def compare_with_chat(record: ChatRecord, found: ArtefactAnswers, like: ev.Checked, emit: Emit) -> None:
    """Emits an artefact's answers and the comparison with the chat."""
    for chat, answer in zip(record.answers, found.answers, strict=True):
        if answer is not None:
            emit(ev.SampleWritten(step=0, prompt=chat.text, answer=answer, side="merged"))
    like = like.model_copy(update={"identical_answers": found.identical, "answers": len(record.answers)})
    emit(compare(record, found.log_probabilities, like))
