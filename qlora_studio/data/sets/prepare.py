"""Conversations become the examples of a run, and every row that is not trained whole is counted and named."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qlora_studio.core.config import DataConfig
from qlora_studio.core.conversation import Conversation
from qlora_studio.core.errors import LawBroken, StudioError
from qlora_studio.core.example import Example, origins, token_lengths
from qlora_studio.data.cleaning.clean import lint_dataset
from qlora_studio.data.render.layout import LayoutMistaken
from qlora_studio.data.render.tokenizer import EncodingMistaken, Tokenizer
from qlora_studio.data.sets.canonical import StoredRow
from qlora_studio.data.sets.mix import Part, Taken, mix
from qlora_studio.data.sets.row_tokeniser import Prepared, RowTokeniser, S, Split, cut_answer, options_of
from qlora_studio.data.sets.sides import Sides, prompt_hash
from qlora_studio.data.sets.store import count_rows, eval_prompts, load_rows

__all__ = ["Prepared", "Split", "cut_answer", "options_of"]

_BATCH_ROWS, _BATCH_CHARACTERS = 512, 1 << 20
"""Rows encoded in one call, and characters after which a batch is full: enough for the tokenizer's threads, little enough
to hold (a token takes the tokenizer about 150 bytes)."""
_SECONDS_BETWEEN_WORDS = 0.5
WAYS = (True, False, False)
"""With layouts or without, tried in turn: the learned layout may be a mistake, and so may the quick way to encode."""


class Stopped(Exception):
    """Somebody asked for a stop while rows were tokenised."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Who is told how far the work is, and who may end it."""

    advanced: Callable[[int, int], None] = lambda done, total: None
    """Rows done and rows in all."""
    stopped: Callable[[], bool] = lambda: False


QUIET = Watch()


@dataclass(frozen=True, slots=True)
class RowsRequest:
    """Which rows a run wants as which tokens."""

    datasets: Path
    """The folder that holds the imported sets."""
    tokenizer: Tokenizer
    config: DataConfig
    seed: int = 42
    """Decides which rows a mixture takes."""
    processes: int = 1
    """How many may share the work where there is much of it; more than one only where this process may be forked."""


def prepare(
    conversations: Iterable[Conversation], tokenizer: Tokenizer, config: DataConfig, *, keep_text: bool = False
) -> Prepared:
    """The examples of these conversations under a run's choices, in memory. Nothing is left out without being counted.

    Does not raise for bad rows: they stand in `findings`, and `check(config.accepted)` refuses to go on with them.
    """
    rows = list(conversations)
    for with_layouts in WAYS:
        examples: list[Example] = []
        work = RowTokeniser(tokenizer, config, examples, keep_text, with_layouts=with_layouts)
        try:
            work.go(_batches(rows))
        except (LayoutMistaken, EncodingMistaken):
            continue
        return work.result(tuple(examples))
    raise AssertionError("the slow way makes no layouts")


def prepare_sources(
    request: RowsRequest, split: Split = "train", *, sides: Sides | None = None, watch: Watch = QUIET
) -> Prepared:
    """One side of all the sets of a run, mixed by their weights, in memory.

    A prompt that any set holds out is not trained. Raises a StudioError where a set does not exist or none is named.
    """
    prepared, examples = write_examples(request, split, list[Example], sides or Sides(), watch)
    order, taken = mixture(request, split, examples)
    mixed = tuple(examples[index] for index in order) if taken else tuple(examples)
    prepared = replace(with_row_findings(request, split, prepared), examples=mixed)
    if not taken:
        return prepared
    tokens, trained = count_tokens(mixed)
    return replace(prepared, mixture=taken, tokens=tokens, trained_tokens=trained)


def write_examples(
    request: RowsRequest,
    split: Split,
    make_sink: Callable[[], S],
    sides: Sides,
    watch: Watch,
    *,
    ways: Sequence[bool] = WAYS,
) -> tuple[Prepared, S]:
    """Gives the examples of one side, unmixed, to a sink; the counts and the sink. `sides` learns their prompts.

    Raises Stopped where `watch` asks for it. Whoever has both sides calls `sides.check()`.
    """
    config = request.config
    if not config.sources:
        raise StudioError("No data set is chosen.", "Import a file and choose its set.", field="data.sources")
    held_out, total = held_out_elsewhere(request, split), count_side(request, split)
    for with_layouts in ways:
        sink, progress = make_sink(), Progress(watch, total)
        work = RowTokeniser(request.tokenizer, config, sink, with_layouts=with_layouts, side=(sides, split))
        try:
            work.go(batches_without(read_side(request, split), held_out, work, progress.advance))
        except (LayoutMistaken, EncodingMistaken):
            continue
        check_rows(work.counts.rows, total)
        return work.result(()), sink
    raise AssertionError("the slow way makes no layouts")


def read_side(request: RowsRequest, split: Split) -> Iterator[StoredRow]:
    """The rows of one side, set by set."""
    for source in request.config.sources:
        yield from load_rows(request.datasets, source.name, split, request.config.eval_share)


def count_side(request: RowsRequest, split: Split) -> int:
    """How many rows one side has, without reading them."""
    config = request.config
    return sum(count_rows(request.datasets, one.name, split, config.eval_share) for one in config.sources)


def check_rows(done: int, expected: int) -> None:
    """Raises LawBroken where a row of a set was neither taken nor refused, or came twice: rows are conserved."""
    if done != expected:
        raise LawBroken(f"{expected} rows were to be tokenised, and {done} were.")


def held_out_elsewhere(request: RowsRequest, split: Split) -> frozenset[int]:
    """The prompts that no training row may have, because a set of the run holds them out."""
    if split == "eval":
        return frozenset()
    share = request.config.eval_share
    return frozenset().union(*(eval_prompts(request.datasets, one.name, share) for one in request.config.sources))


def batches_without(
    rows: Iterable[StoredRow], held_out: frozenset[int], work: RowTokeniser, advanced: Callable[[int], None]
) -> Iterator[list[Conversation]]:
    """The rows in batches, without those whose prompt another set holds out; `advanced` gets the number of rows done."""
    for batch in _batches(row.read() for row in rows):
        kept = [row for row in batch if not held_out or prompt_hash(row) not in held_out]
        work.note_overlap(batch, kept)
        yield kept
        advanced(len(batch))


class Progress:
    """Counts rows for a watch, which is told now and then. Raises Stopped where it asks for a stop."""

    def __init__(self, watch: Watch, total: int) -> None:
        self.watch, self.total, self.done, self.reported_at = watch, total, 0, time.monotonic()

    def advance(self, rows: int) -> None:
        self.done += rows
        self.look(self.done)

    def look(self, done: int) -> None:
        if self.watch.stopped():
            raise Stopped
        if done == self.total or time.monotonic() - self.reported_at > _SECONDS_BETWEEN_WORDS:
            self.reported_at = time.monotonic()
            self.watch.advanced(done, self.total)


def mixture(request: RowsRequest, split: Split, examples: Sequence[Example]) -> tuple[list[int], tuple[Taken, ...]]:
    """The numbers of the examples that a mixture takes, and the account of it; both empty for one set alone.

    The evaluation side is never mixed down.
    """
    config = request.config
    if split == "eval" or len(config.sources) == 1:
        return [], ()
    rows: dict[str, list[int]] = {source.name: [] for source in config.sources}
    for index, name in enumerate(origins(examples)):
        rows[name].append(index)
    lengths = token_lengths(examples)
    by_tokens = config.mix_by == "tokens"
    parts = [
        Part(
            source.name,
            source.weight,
            [lengths[row] if by_tokens else 1 for row in rows[source.name]],
            source.max_repeats,
        )
        for source in config.sources
    ]
    chosen, taken = mix(parts, request.seed)
    order = [rows[part.name][number] for part, numbers in zip(parts, chosen, strict=True) for number in numbers]
    return order, taken


def with_row_findings(request: RowsRequest, split: Split, prepared: Prepared) -> Prepared:
    """The same with what lint finds in the rows of the sets themselves."""
    if split == "eval":
        return prepared
    of_rows = tuple(finding for one in request.config.sources for finding in lint_dataset(request.datasets, one.name))
    return replace(prepared, findings=(*of_rows, *prepared.findings))


def count_tokens(examples: Iterable[Example]) -> tuple[int, int]:
    """Tokens in all and tokens that are trained."""
    tokens = trained = 0
    for example in examples:
        tokens += len(example.input_ids)
        trained += example.trained_tokens
    return tokens, trained


def _batches(rows: Iterable[Conversation]) -> Iterator[list[Conversation]]:
    """The rows in batches that hold a bounded number of characters beside the row that fills one."""
    batch: list[Conversation] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += len(row.text or "") + sum(len(turn.content) for turn in row.turns)
        if len(batch) == _BATCH_ROWS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
