"""The job `tokenise`: what the model will really see of a data set, before any card time is spent."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from qlora_studio.core import events as ev
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.example import Example
from qlora_studio.data.sets.prepare import Prepared, prepare, prepare_sources
from qlora_studio.data.sets.store import load_conversations
from qlora_studio.engine.tokenizer import ChatTokenizer, load_tokenizer
from qlora_studio.worker.context import Context
from qlora_studio.worker.templates import vet_once

BINS = 24
"""Columns of the length histogram."""


def run(context: Context) -> ev.Event:
    arguments, config = context.arguments(), context.config()
    base = context.fetch_base(config)
    vet_once(context, base.folder, config.model.template)
    context.phase("turning rows into tokens")
    tokenizer = load_tokenizer(base.folder, config.model.template)
    folder, seed = Path(arguments["folder"]), config.optim.seed
    prepared = prepare_sources(folder, tokenizer, config.data, seed=seed)
    held_out = prepare_sources(folder, tokenizer, config.data, split="eval", seed=seed)
    return ev.Finished(
        result={
            **counts(prepared),
            "held_out_rows": len(held_out.examples),
            "limit": config.data.max_length,
            "histogram": histogram(prepared.lengths),
            "padding_share": padding_share([len(example.input_ids) for example in prepared.examples]),
            "findings": [finding.model_dump(mode="json") for finding in prepared.findings],
            "previews": [preview(example) for example in first_examples(folder, config, tokenizer, arguments["rows"])],
        }
    )


def counts(prepared: Prepared) -> dict[str, Any]:
    """How many rows and tokens there are, and what does not stay whole."""
    ordered = sorted(prepared.lengths)
    return {
        "rows": prepared.rows,
        "examples": len(prepared.examples),
        "tokens": prepared.tokens,
        "trained_tokens": prepared.trained_tokens,
        "too_long": prepared.too_long,
        "dropped": prepared.dropped,
        "cut": prepared.cut,
        "refused": prepared.refused,
        "median": ordered[len(ordered) // 2] if ordered else 0,
        "p95": ordered[len(ordered) * 95 // 100] if ordered else 0,
        "longest": ordered[-1] if ordered else 0,
    }


def histogram(lengths: Sequence[int]) -> list[dict[str, int]]:
    """Rows by length in tokens: equal bins from 0 to the longest row."""
    if not lengths:
        return []
    width = max(1, -(-(max(lengths) + 1) // BINS))
    rows = [0] * (max(lengths) // width + 1)
    for length in lengths:
        rows[length // width] += 1
    return [{"from": index * width, "to": (index + 1) * width - 1, "rows": count} for index, count in enumerate(rows)]


def padding_share(lengths: Sequence[int]) -> float:
    """Share of padding if rows were batched by eight as they come; sorting within a step avoids most of it."""
    padded = sum(
        len(group) * max(group) for group in (lengths[start : start + 8] for start in range(0, len(lengths), 8))
    )
    return 1 - sum(lengths) / padded if padded else 0.0


def first_examples(folder: Path, config: TrainConfig, tokenizer: ChatTokenizer, rows: int) -> Sequence[Example]:
    """The examples of the first rows to train, with their text."""
    name, share = config.data.sources[0].name, config.data.eval_share
    first = islice(load_conversations(folder, name, "train", share), rows)
    return prepare(first, tokenizer, config.data, keep_text=True).examples


def preview(example: Example) -> dict[str, Any]:
    """A row's exact text in stretches that are trained or not; together they are all of it."""
    text, pieces, position = example.text, [], 0
    for start, end in example.text_spans:
        pieces += [(text[position:start], False), (text[start:end], True)]
        position = end
    pieces.append((text[position:], False))
    return {
        "source": str(example.source),
        "tokens": len(example.input_ids),
        "trained": example.trained_tokens,
        "pieces": [{"text": part, "trained": trained} for part, trained in pieces if part],
    }
