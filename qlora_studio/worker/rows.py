"""The rows of a config as tokens, for every job that needs them: on all cores, kept in the cache, said while it works."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qlora_studio.core import events as ev
from qlora_studio.core.config import TrainConfig
from qlora_studio.data.sets.prepare import Prepared, RowsRequest, Watch, prepare_sources
from qlora_studio.data.sets.token_cache import TokenisedRows, find_tokenised, tokenise_rows
from qlora_studio.engine.tokenizer import ChatTokenizer
from qlora_studio.worker.context import Context

MOST_PROCESSES = 4
"""Of as many cores: each keeps the pre-tokens that it met, up to some dozen megabytes."""


def tokenise(
    context: Context, config: TrainConfig, tokenizer: ChatTokenizer, datasets: Path | None = None
) -> TokenisedRows:
    """Both sides of a run's data. Raises prepare.Stopped where the job is asked to stop meanwhile."""
    request = RowsRequest(datasets or context.home.datasets, tokenizer, config.data, config.optim.seed, processes())
    with all_cores():
        rows = tokenise_rows(request, context.home.cache, watch(context))
    if rows.from_cache:
        context.emit(ev.Noted(text="These rows were tokenised before; their tokens are used again."))
    return rows


def held_out(context: Context, config: TrainConfig, tokenizer: ChatTokenizer) -> Prepared:
    """The evaluation side alone: that of the cache where it is there, else made in memory."""
    request = RowsRequest(context.home.datasets, tokenizer, config.data, config.optim.seed)
    with all_cores():
        kept = find_tokenised(request, context.home.cache)
        return kept.held_out if kept else prepare_sources(request, "eval", watch=watch(context))


def watch(context: Context) -> Watch:
    """Emits how many rows are done and how long the rest takes, and looks for a request to stop."""
    began = time.monotonic()

    def report(done: int, total: int) -> None:
        seconds = time.monotonic() - began
        left = seconds * (total - done) / done if done and total else None
        context.emit(ev.Advanced(done=done, total=total, unit="rows", seconds_left=left))

    return Watch(report, lambda: context.pending_request() in ("stop", "pause"))


def processes() -> int:
    """How many may tokenise: one a core, but on Linux alone can this process be forked at any time."""
    return min(len(os.sched_getaffinity(0)), MOST_PROCESSES) if sys.platform == "linux" else 1


@contextmanager
def all_cores() -> Iterator[None]:
    """Lets the tokenizer use its threads: jobs are started without, since nothing else here may count on them.

    Python's own threads take turns ten times as often meanwhile, so that what feeds the tokenizer does not wait for them.
    """
    before, interval = os.environ.get("TOKENIZERS_PARALLELISM"), sys.getswitchinterval()
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    sys.setswitchinterval(interval / 10)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        if before is None:
            os.environ.pop("TOKENIZERS_PARALLELISM", None)
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
