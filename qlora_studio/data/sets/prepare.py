"""Conversations become the examples of a run, and every row that is not trained whole is counted and named."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

from qlora_studio.core.config import DataConfig
from qlora_studio.core.conversation import Conversation
from qlora_studio.core.dataset import Finding
from qlora_studio.core.errors import StudioError
from qlora_studio.core.example import Example
from qlora_studio.data.cleaning.clean import lint_dataset
from qlora_studio.data.cleaning.lint import check_findings
from qlora_studio.data.cleaning.row_findings import TokenFindings
from qlora_studio.data.render.control import ControlTokenTyped
from qlora_studio.data.render.encode import Draft, encode_drafts
from qlora_studio.data.render.prompt import RenderOptions, RowRefused, drafts, stop_ids
from qlora_studio.data.render.tokenizer import Tokenizer
from qlora_studio.data.render.traits import Traits, read_traits
from qlora_studio.data.sets.canonical import prompt_hash
from qlora_studio.data.sets.mix import Part, Taken, mix
from qlora_studio.data.sets.store import eval_prompts, load_conversations

_BATCH_ROWS = 512
"""Rows encoded in one call: enough for the tokenizer's threads, little enough to hold."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What will be trained, and what will not."""

    examples: tuple[Example, ...]
    rows: int
    """Conversations looked at."""
    findings: tuple[Finding, ...] = ()
    too_long: int = 0
    """Rows longer than the limit; they were dropped or cut, as the next two count."""
    dropped: int = 0
    cut: int = 0
    refused: int = 0
    """Rows that cannot be rendered or have nothing to train."""
    tokens: int = 0
    trained_tokens: int = 0
    reasoning_rows: int = 0
    """Conversations whose last answer reasons first: where most do, chat lets the model reason as well."""
    lengths: tuple[int, ...] = ()
    """Tokens of each rendered row before anything was dropped or cut; for the histogram and the planner."""
    stop_ids: frozenset[int] = frozenset()
    mixture: tuple[Taken, ...] = ()
    """What was taken of each set, where there are several."""

    def check(self, accepted: Iterable[str] = ()) -> None:
        """Raises a StudioError naming every error-level finding that is not accepted by name."""
        check_findings(self.findings, accepted)
        if not self.examples:
            raise StudioError(
                "No row is left to train.", "Look at the findings of the data set, or raise data.max_length."
            )


def prepare(
    conversations: Iterable[Conversation], tokenizer: Tokenizer, config: DataConfig, *, keep_text: bool = False
) -> Prepared:
    """The examples of these conversations under a run's choices. Nothing is left out without being counted.

    Does not raise for bad rows: they stand in `findings`, and `check(config.accepted)` refuses to go on with them.
    """
    traits = read_traits(tokenizer)
    work = _Work(tokenizer, config, traits, keep_text)
    for batch in _batches(conversations, _BATCH_ROWS):
        work.take(batch)
    return work.result()


def prepare_sources(
    datasets_folder: Path,
    tokenizer: Tokenizer,
    config: DataConfig,
    *,
    split: Literal["train", "eval"] = "train",
    seed: int = 42,
    keep_text: bool = False,
) -> Prepared:
    """One side of all the sets of a run, mixed by their weights. A prompt that any set holds out is not trained.

    Raises a StudioError where a set does not exist or none is named. The evaluation side is never mixed down.
    """
    if not config.sources:
        raise StudioError("No data set is chosen.", "Import a file and choose its set.", field="data.sources")
    held_out = frozenset[int]()
    if split == "train":
        held_out = held_out.union(
            *(eval_prompts(datasets_folder, one.name, config.eval_share) for one in config.sources)
        )
    traits = read_traits(tokenizer)
    work = _Work(tokenizer, config, traits, keep_text)
    for source in config.sources:
        rows = load_conversations(datasets_folder, source.name, split, config.eval_share)
        for batch in _batches(rows, _BATCH_ROWS):
            kept = [row for row in batch if not held_out or prompt_hash(row) not in held_out]
            work.note_overlap(batch, kept)
            work.take(kept)
    prepared = work.result()
    if split == "train":
        of_rows = tuple(finding for one in config.sources for finding in lint_dataset(datasets_folder, one.name))
        prepared = replace(prepared, findings=(*of_rows, *prepared.findings))
    if split == "eval" or len(config.sources) == 1:
        return prepared
    groups = {source.name: [one for one in prepared.examples if one.origin == source.name] for source in config.sources}
    parts = [Part(source.name, source.weight, groups[source.name]) for source in config.sources]
    by_tokens = config.mix_by == "tokens"
    examples, taken = mix(parts, lambda one: len(one.input_ids) if by_tokens else 1, seed)
    return replace(
        prepared,
        examples=tuple(examples),
        tokens=sum(len(example.input_ids) for example in examples),
        trained_tokens=sum(example.trained_tokens for example in examples),
        mixture=taken,
    )


def options_of(config: DataConfig) -> RenderOptions:
    """The rendering choices of a run."""
    return RenderOptions(train_on=config.train_on, control_tokens=config.control_tokens)


def _batches(items: Iterable[Conversation], size: int) -> Iterator[list[Conversation]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


class _Pool(dict[int, int]):
    """One integer object per token id instead of one per token: a fifth of the memory."""

    def __missing__(self, token: int) -> int:
        self[token] = token
        return token


class _Work:
    """The running counts of one preparation."""

    def __init__(self, tokenizer: Tokenizer, config: DataConfig, traits: Traits, keep_text: bool) -> None:
        self.tokenizer, self.config, self.traits, self.keep_text = tokenizer, config, traits, keep_text
        self.options = options_of(config)
        self.examples: list[Example] = []
        self.lengths: list[int] = []
        self.rows = self.too_long = self.dropped = self.cut = self.refused = self.reasoning = 0
        self.found = TokenFindings(tokenizer)
        self.pool = _Pool()

    def take(self, batch: list[Conversation]) -> None:
        made: list[Draft] = []
        for conversation in batch:
            self.rows += 1
            self.reasoning += bool(conversation.turns and conversation.turns[-1].reasoning)
            if conversation.label is False:
                self.found.note("bad-example", str(conversation.source))
                self.refused += 1
                continue
            try:
                made += drafts(conversation, self.tokenizer, self.options, self.traits)
            except (RowRefused, ControlTokenTyped) as error:
                self._refuse(error, conversation)
        for draft, example in zip(made, encode_drafts(made, self.tokenizer, self.keep_text), strict=True):
            self._keep(draft.conversation, example)

    def note_overlap(self, batch: list[Conversation], kept: list[Conversation]) -> None:
        """Counts training rows that are left out because another set holds their prompt out."""
        if len(kept) == len(batch):
            return
        stay = set(map(id, kept))
        for conversation in batch:
            if id(conversation) not in stay:
                self.rows += 1
                self.refused += 1
                self.found.note("held-out-elsewhere", str(conversation.source))

    def _refuse(self, error: RowRefused | ControlTokenTyped, conversation: Conversation) -> None:
        self.refused += 1
        self.found.note(error.finding, str(conversation.source), error)

    def _keep(self, conversation: Conversation, example: Example) -> None:
        self.lengths.append(len(example.input_ids))
        if wrong := self.found.unusable(example):
            self.found.note(wrong, str(conversation.source))
            self.refused += 1
            return
        self.found.look(example, conversation)
        if len(example.input_ids) > self.config.max_length:
            self.too_long += 1
            shorter = self._shorten(conversation, example)
            if shorter is None:
                self.dropped += 1
                return
            self.cut += 1
            example = shorter
        ids = tuple(map(self.pool.__getitem__, example.input_ids))
        self.examples.append(replace(example, input_ids=ids))

    def _shorten(self, conversation: Conversation, example: Example) -> Example | None:
        """The row made to fit as the run wants it, or None where it is left out."""
        where, limit = str(conversation.source), self.config.max_length
        if self.config.too_long == "cut_oldest":
            shorter = self._without_oldest(conversation, example)
        elif self.config.too_long == "cut_answer":
            shorter = cut_answer(example, limit)
        else:
            shorter = None
        self.found.too_long(where, example, limit, shorter)
        return shorter

    def _without_oldest(self, conversation: Conversation, example: Example) -> Example | None:
        """The longest newest part of a conversation that fits: whole exchanges go, the system prompt stays."""
        turns = conversation.turns
        head = 1 if turns and turns[0].role == "system" else 0
        for start in [index for index in range(head + 1, len(turns)) if turns[index].role == "user"]:
            shorter = replace(conversation, turns=(*turns[:head], *turns[start:]))
            try:
                made = encode_drafts(
                    drafts(shorter, self.tokenizer, self.options, self.traits), self.tokenizer, self.keep_text
                )
            except (RowRefused, ControlTokenTyped):
                return None
            same = [one for one in made if _last_trained(one) == _last_trained(example)]
            if same and len(same[-1].input_ids) <= self.config.max_length:
                return same[-1]
        return None

    def result(self) -> Prepared:
        return Prepared(
            examples=tuple(self.examples),
            rows=self.rows,
            findings=self.found.findings(),
            too_long=self.too_long,
            dropped=self.dropped,
            cut=self.cut,
            refused=self.refused,
            tokens=sum(len(example.input_ids) for example in self.examples),
            trained_tokens=sum(example.trained_tokens for example in self.examples),
            reasoning_rows=self.reasoning,
            lengths=tuple(self.lengths),
            stop_ids=stop_ids(self.tokenizer, self.traits),
        )


def _last_trained(example: Example) -> tuple[int, ...]:
    """The ids of the last trained span: by it the same answer is found again in a shorter conversation."""
    return example.input_ids[example.spans[-1][0] :] if example.spans else ()


def cut_answer(example: Example, limit: int) -> Example | None:
    """The first `limit` tokens. The answer that is cut has no end token, so it does not pretend to end there.

    None where no trained token is left: then the prompt alone fills the limit, and a prompt is never cut.
    """
    spans = tuple((start, min(end, limit)) for start, end in example.spans if start < limit)
    if not spans:
        return None
    shorter = replace(example, input_ids=example.input_ids[: spans[-1][1]], spans=spans, text="", text_spans=())
    return shorter if shorter.trained_tokens else None
