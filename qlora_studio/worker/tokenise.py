"""The job `tokenise`: what the model will really see of a data set, before any card time is spent."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from qlora_studio.core import events as ev
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.example import Example, token_lengths
from qlora_studio.core.jobs import ExamplePreview, LengthBin, TextPiece, TokeniseReport, TokeniseRequest
from qlora_studio.data.render.tokenizer import Tokenizer
from qlora_studio.data.sets.prepare import Prepared, Stopped, prepare
from qlora_studio.data.sets.store import load_conversations
from qlora_studio.engine.without_torch import leave_torch_out
from qlora_studio.worker.context import Context
from qlora_studio.worker.kept_report import KeptReport

BINS = 24
"""Columns of the length histogram."""
MOST_LENGTHS = 20_000
"""Lengths that travel in the report; of more rows only their summary does."""


def run(context: Context) -> ev.Event:
    request, config = context.request(TokeniseRequest), context.config()
    base = context.fetch_base(config)
    kept = KeptReport.of(request, config, base.folder, context.home.cache)
    report = kept.read()
    if report is not None:
        context.emit(ev.Noted(text="These rows were tokenised before; what was found then is used again."))
        return ev.Finished(report=report)
    if context.own_process:
        leave_torch_out()
    try:
        report = _tokenise(context, request, config, base.folder)
    except Stopped:
        return ev.Stopped()
    kept.write(report)
    return ev.Finished(report=report)


def _tokenise(context: Context, request: TokeniseRequest, config: TrainConfig, base: Path) -> TokeniseReport:
    """Raises Stopped. The libraries of the tokenizer are imported here: a report that is kept comes without them."""
    from qlora_studio.engine.tokenizer import load_tokenizer
    from qlora_studio.worker.rows import tokenise
    from qlora_studio.worker.templates import vet_once

    vet_once(context, base, config.model.template)
    context.phase("tokenising the rows")
    tokenizer = load_tokenizer(base, config.model.template)
    rows = tokenise(context, config, tokenizer, request.datasets)
    first = first_examples(request.datasets, config, tokenizer, request.previews)
    previews = [preview(example) for example in first]
    return make_report(rows.train, len(rows.held_out.examples), config.data.max_length, previews)


def make_report(train: Prepared, held_out_rows: int, limit: int, previews: Sequence[ExamplePreview]) -> TokeniseReport:
    """How many rows and tokens there are, how long they are, and what does not stay whole."""
    ordered = sorted(train.lengths)
    kept = token_lengths(train.examples)
    return TokeniseReport(
        rows=train.rows,
        examples=len(train.examples),
        held_out_rows=held_out_rows,
        tokens=train.tokens,
        trained_tokens=train.trained_tokens,
        limit=limit,
        too_long=train.too_long,
        dropped=train.dropped,
        cut=train.cut,
        refused=train.refused,
        median=ordered[len(ordered) // 2] if ordered else 0,
        p95=ordered[len(ordered) * 95 // 100] if ordered else 0,
        longest=ordered[-1] if ordered else 0,
        padding_share=padding_share(kept),
        histogram=histogram(train.lengths),
        lengths=tuple(kept) if len(kept) <= MOST_LENGTHS else (),
        findings=tuple(train.findings),
        previews=tuple(previews),
    )


def histogram(lengths: Sequence[int]) -> tuple[LengthBin, ...]:
    """Rows by length in tokens: equal bins from 0 to the longest row."""
    if not lengths:
        return ()
    width = max(1, -(-(max(lengths) + 1) // BINS))
    rows = [0] * (max(lengths) // width + 1)
    for length in lengths:
        rows[length // width] += 1
    return tuple(
        LengthBin(first=index * width, last=(index + 1) * width - 1, rows=count) for index, count in enumerate(rows)
    )


def padding_share(lengths: Sequence[int]) -> float:
    """Share of padding if rows were batched by eight as they come; sorting within a step avoids most of it."""
    padded = sum(
        len(group) * max(group) for group in (lengths[start : start + 8] for start in range(0, len(lengths), 8))
    )
    return 1 - sum(lengths) / padded if padded else 0.0


def first_examples(folder: Path, config: TrainConfig, tokenizer: Tokenizer, rows: int) -> Sequence[Example]:
    """The examples of the first rows to train, with their text."""
    name, share = config.data.sources[0].name, config.data.eval_share
    first = islice(load_conversations(folder, name, "train", share), rows)
    return prepare(first, tokenizer, config.data, keep_text=True).examples


def preview(example: Example) -> ExamplePreview:
    """A row's exact text in stretches that are trained or not; together they are all of it."""
    text, pieces, position = example.text, [], 0
    for start, end in example.text_spans:
        pieces += [(text[position:start], False), (text[start:end], True)]
        position = end
    pieces.append((text[position:], False))
    return ExamplePreview(
        source=str(example.source),
        tokens=len(example.input_ids),
        trained=example.trained_tokens,
        pieces=tuple(TextPiece(text=part, trained=trained) for part, trained in pieces if part),
    )
