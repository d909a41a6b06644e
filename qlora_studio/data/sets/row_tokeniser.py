"""Batches of conversations become examples: rendered here while a thread encodes the batch before, every loss counted."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from typing import Literal, Protocol, TypeVar

from qlora_studio.core.config import DataConfig
from qlora_studio.core.conversation import Conversation
from qlora_studio.core.dataset import Finding
from qlora_studio.core.errors import StudioError
from qlora_studio.core.example import Example
from qlora_studio.data.cleaning.lint import check_findings
from qlora_studio.data.cleaning.row_findings import TokenFindings
from qlora_studio.data.render.blocks import cut_text
from qlora_studio.data.render.control import ControlTokenTyped
from qlora_studio.data.render.encode import Draft, encode_drafts
from qlora_studio.data.render.prompt import RenderOptions, drafts, make_layouts, stop_ids
from qlora_studio.data.render.templated_row import RowRefused
from qlora_studio.data.render.tokenizer import Tokenizer
from qlora_studio.data.render.traits import read_traits
from qlora_studio.data.sets.mix import Taken
from qlora_studio.data.sets.sides import Sides

Split = Literal["train", "eval"]


class Sink(Protocol):
    """What takes the examples."""

    def append(self, example: Example, /) -> None: ...


S = TypeVar("S", bound=Sink)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What will be trained, and what will not."""

    examples: Sequence[Example]
    rows: int
    """Conversations in all."""
    findings: tuple[Finding, ...]
    too_long: int
    """Rows longer than the limit; they were dropped or cut, as the next two count."""
    dropped: int
    cut: int
    refused: int
    """Rows that cannot be rendered or have nothing to train."""
    tokens: int
    trained_tokens: int
    reasoning_rows: int
    """Conversations whose last answer reasons first: where most do, chat lets the model reason as well."""
    lengths: Sequence[int]
    """Tokens of each rendered row before anything was dropped or cut; for the histogram and the planner."""
    stop_ids: frozenset[int]
    mixture: tuple[Taken, ...] = ()
    """What was taken of each set, where there are several."""
    sha256: str = ""
    """Of tokens and spans; empty for those that are not on disk."""

    def check(self, accepted: Iterable[str] = ()) -> None:
        """Raises a StudioError naming every error-level finding that is not accepted by name."""
        check_findings(self.findings, accepted)
        if not self.examples:
            raise StudioError(
                "No row is left to train.", "Look at the findings of the data set, or raise data.max_length."
            )


def options_of(config: DataConfig) -> RenderOptions:
    """The rendering choices of a run."""
    return RenderOptions(train_on=config.train_on, control_tokens=config.control_tokens)


@dataclass
class Counts:
    """What happened to rows so far."""

    rows: int = 0
    too_long: int = 0
    dropped: int = 0
    cut: int = 0
    refused: int = 0
    reasoning_rows: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    lengths: array[int] = field(default_factory=lambda: array("i"))

    def add(self, later: Counts) -> None:
        """Takes what happened to rows that come after these."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(later, one.name))


class RowTokeniser:
    """One preparation: batches are rendered here while a thread turns the batch before into tokens."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: DataConfig,
        sink: Sink,
        keep_text: bool = False,
        *,
        with_layouts: bool = True,
        side: tuple[Sides, Split] | None = None,
    ) -> None:
        self.tokenizer, self.config, self.keep_text = tokenizer, config, keep_text
        self.options, self.traits = options_of(config), read_traits(tokenizer)
        self.layouts = make_layouts(tokenizer, self.options, self.traits) if with_layouts else None
        self.begin(sink, side)

    def begin(self, sink: Sink, side: tuple[Sides, Split] | None) -> None:
        """From here on examples go to this sink, prompts to this side, and counting begins anew."""
        self.sink, self.side = sink, side
        self.counts, self.found = Counts(), TokenFindings(self.tokenizer)

    def go(self, batches: Iterable[list[Conversation]]) -> None:
        waiting: tuple[list[Draft], Future[list[Example]]] | None = None
        with ThreadPoolExecutor(1, "encode") as pool:
            for batch in batches:
                made = self._render(batch)
                following = made, pool.submit(encode_drafts, made, self.tokenizer, self.keep_text)
                if waiting:
                    self._finish(*waiting)
                waiting = following
            if waiting:
                self._finish(*waiting)

    def _render(self, batch: list[Conversation]) -> list[Draft]:
        made: list[Draft] = []
        for conversation in batch:
            self.counts.rows += 1
            self.counts.reasoning_rows += bool(conversation.turns and conversation.turns[-1].reasoning)
            if self.side is not None:
                self.side[0].note(conversation, self.side[1])
            if conversation.label is False:
                self.found.note("bad-example", str(conversation.source))
                self.counts.refused += 1
                continue
            try:
                made += drafts(conversation, self.tokenizer, self.options, self.traits, self.layouts)
            except (RowRefused, ControlTokenTyped) as error:
                self.counts.refused += 1
                self.found.note(error.finding, str(conversation.source), error)
        return made

    def _finish(self, made: list[Draft], encoded: Future[list[Example]]) -> None:
        for draft, example in zip(made, encoded.result(), strict=True):
            self._keep(draft, example)

    def note_overlap(self, batch: list[Conversation], kept: list[Conversation]) -> None:
        """Counts training rows that are left out because another set holds their prompt out."""
        if len(kept) == len(batch):
            return
        stay = set(map(id, kept))
        for conversation in batch:
            if id(conversation) not in stay:
                self.counts.rows += 1
                self.counts.refused += 1
                self.found.note("held-out-elsewhere", str(conversation.source))

    def _keep(self, draft: Draft, example: Example) -> None:
        conversation, length = draft.conversation, len(example.input_ids)
        if wrong := self.found.unusable(example):
            self.counts.lengths.append(length)
            self.found.note(wrong, str(conversation.source))
            self.counts.refused += 1
            return
        self.found.look(example, conversation)
        if length > self.config.max_length and conversation.text is not None:
            self.found.note("text-blocks", str(conversation.source))
            limit, overlap = self.config.max_length, self.config.text_overlap
            for block in cut_text(example, draft.text, self.tokenizer, limit, overlap):
                self._take(block)
            return
        if length > self.config.max_length:
            self.counts.too_long += 1
            self.counts.lengths.append(length)
            shorter = self._shorten(conversation, example)
            if shorter is None:
                self.counts.dropped += 1
                return
            self.counts.cut += 1
            self._take(shorter, counted=True)
            return
        self._take(example)

    def _take(self, example: Example, counted: bool = False) -> None:
        counts = self.counts
        counts.tokens += len(example.input_ids)
        counts.trained_tokens += example.trained_tokens
        if not counted:
            counts.lengths.append(len(example.input_ids))
        self.sink.append(example)

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

    def result(self, examples: Sequence[Example]) -> Prepared:
        return make_prepared(self.counts, self.found, stop_ids(self.tokenizer, self.traits), examples)


def make_prepared(
    counts: Counts, found: TokenFindings, stops: frozenset[int], examples: Sequence[Example] = ()
) -> Prepared:
    """What was counted and found, with the examples if they are in memory."""
    return Prepared(
        examples=examples,
        rows=counts.rows,
        findings=found.findings(),
        too_long=counts.too_long,
        dropped=counts.dropped,
        cut=counts.cut,
        refused=counts.refused,
        tokens=counts.tokens,
        trained_tokens=counts.trained_tokens,
        reasoning_rows=counts.reasoning_rows,
        lengths=counts.lengths,
        stop_ids=stops,
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
