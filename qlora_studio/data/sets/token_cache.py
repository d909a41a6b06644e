"""The tokens of a run, kept: a second start, a resume and a changed learning rate tokenise nothing.

What is kept is found again by everything that decides it: the content of the sets, the tokenizer with its template,
the choices of the run that concern rows, and the version of this program's rendering.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qlora_studio.core.config import DataConfig
from qlora_studio.core.dataset import Finding
from qlora_studio.core.errors import StudioError
from qlora_studio.data.render.layout import LayoutMistaken
from qlora_studio.data.render.tokenizer import EncodingMistaken
from qlora_studio.data.sets.canonical import read_report
from qlora_studio.data.sets.mix import Taken
from qlora_studio.data.sets.prepare import (
    QUIET,
    WAYS,
    Prepared,
    RowsRequest,
    Split,
    Watch,
    count_tokens,
    mixture,
    with_row_findings,
    write_examples,
)
from qlora_studio.data.sets.sides import Sides
from qlora_studio.data.sets.store import find_dataset
from qlora_studio.data.sets.stretches import write_stretches
from qlora_studio.data.sets.token_table import TokenTable, TokenWriter

RENDERING_VERSION = 1
"""Goes up whenever the same row may give other tokens than before."""
KEPT = 12
"""Preparations that are kept; the one used longest ago goes first."""
SPLITS: tuple[Split, ...] = ("train", "eval")
COUNTS = ("rows", "too_long", "dropped", "cut", "refused", "tokens", "trained_tokens", "reasoning_rows")


@dataclass(frozen=True, slots=True)
class TokenisedRows:
    """Both sides of a run's data, as the model will see them."""

    train: Prepared
    held_out: Prepared
    from_cache: bool = False


def tokenise_rows(request: RowsRequest, cache: Path, watch: Watch = QUIET) -> TokenisedRows:
    """Both sides of the sets of a run as examples that lie on disk, from `cache` where they are there already.

    `watch` hears how far it is and may end it (prepare.Stopped). Raises a StudioError where a set does not exist or
    none is named, and LawBroken where a prompt would stand on both sides. Findings are in the result; nothing is refused.
    """
    if not request.config.sources:
        raise StudioError("No data set is chosen.", "Import a file and choose its set.", field="data.sources")
    if kept := find_tokenised(request, cache):
        return kept
    place = _place(request, cache)
    _make(request, place, watch)
    made = _read(request, place)
    if made is None:
        raise StudioError("The tokens cannot be kept.", "Make room on the disk.", where=str(place))
    _prune(place.parent)
    return made


def find_tokenised(request: RowsRequest, cache: Path) -> TokenisedRows | None:
    """The same, if it is there already."""
    kept = _read(request, _place(request, cache))
    return replace(kept, from_cache=True) if kept else None


def _place(request: RowsRequest, cache: Path) -> Path:
    return cache / "tokens" / rows_key(request.datasets, request.config, request.seed, request.tokenizer.digest)


def rows_key(datasets: Path, config: DataConfig, seed: int, tokenizer: str) -> str:
    """The hash of all that decides the tokens; `tokenizer` is a digest of the tokenizer with its template."""
    sets = [(one.name, read_report(find_dataset(datasets, one.name)).sha256) for one in config.sources]
    choices = config.model_dump(mode="json", exclude={"accepted", "format", "columns"})
    if len(config.sources) == 1:
        choices["sources"] = []  # shares mean nothing for one set alone
    known = {
        "version": RENDERING_VERSION,
        "sets": sets,
        "tokenizer": tokenizer,
        "choices": choices,
        "seed": seed if len(config.sources) > 1 else 0,
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:32]


def _read(request: RowsRequest, place: Path) -> TokenisedRows | None:
    """What is kept there; None where nothing is, or where it is damaged."""
    try:
        tables = {split: TokenTable(place / f"{split}.safetensors") for split in SPLITS}
        sides = {split: _prepared(table) for split, table in tables.items()}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    with suppress(OSError):
        os.utime(place)
    return TokenisedRows(with_row_findings(request, "train", sides["train"]), sides["eval"])


def _prepared(table: TokenTable) -> Prepared:
    facts = table.facts
    return Prepared(
        examples=table,
        findings=tuple(Finding.model_validate(values) for values in facts["findings"]),
        lengths=table.lengths,
        stop_ids=frozenset(facts["stop_ids"]),
        mixture=tuple(Taken(**values) for values in facts["mixture"]),
        sha256=table.sha256,
        **{name: facts[name] for name in COUNTS},
    )


def _make(request: RowsRequest, place: Path, watch: Watch) -> None:
    """Tokenises both sides, checks that they keep apart, and puts them in place at once."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".tokenise-", dir=place.parent))
    except OSError as error:
        raise StudioError(
            f"Nothing can be written here: {error.strerror}.", "Choose another home folder.", where=str(place.parent)
        ) from None
    try:
        sides = Sides()
        for split in SPLITS:
            _write_side(request, split, (stage, sides), watch)
        sides.check()
        shutil.rmtree(place, ignore_errors=True)
        stage.replace(place)
    except OSError as error:
        raise StudioError(
            f"The tokens cannot be written: {error.strerror or error}.", "Make room on the disk.", where=str(place)
        ) from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _write_side(request: RowsRequest, split: Split, place: tuple[Path, Sides], watch: Watch) -> None:
    stage, sides = place
    file = stage / f"{split}.safetensors"
    writers: list[TokenWriter] = []

    def make_writer() -> TokenWriter:
        writers.append(TokenWriter(stage / f"{split}.{len(writers)}.part"))
        return writers[-1]

    try:
        writer = make_writer()
        ways: Sequence[bool] = WAYS
        try:
            prepared = write_stretches(request, split, writer, sides, watch)
        except (LayoutMistaken, EncodingMistaken):  # by a process that is gone: this one would not know it again
            request.tokenizer.stop_caching()
            prepared, ways = None, WAYS[1:]
        if prepared is None:
            prepared, writer = write_examples(request, split, make_writer, sides, watch, ways=ways)
        writer.add_lengths(prepared.lengths)
        writer.finish(file, _facts(prepared))
    finally:
        for each in writers:
            each.close()
    order, taken = mixture(request, split, TokenTable(file))
    if taken:
        _add_mixture(file, prepared, order, taken)


def _add_mixture(file: Path, prepared: Prepared, order: list[int], taken: tuple[Taken, ...]) -> None:
    """The table once more, with the rows that a mixture takes."""
    table = TokenTable(file)
    writer = TokenWriter(file.with_suffix(".mixed"))
    try:
        for example in table:
            writer.append(example)
        writer.add_lengths(table.lengths)
        writer.add_order(order)
        tokens, trained = count_tokens(table[index] for index in order)
        mixed = replace(prepared, mixture=taken, tokens=tokens, trained_tokens=trained)
        writer.finish(file, _facts(mixed))
    finally:
        writer.close()


def _facts(prepared: Prepared) -> dict[str, Any]:
    return {
        **{name: getattr(prepared, name) for name in COUNTS},
        "findings": [finding.model_dump(mode="json") for finding in prepared.findings],
        "stop_ids": sorted(prepared.stop_ids),
        "mixture": [asdict(taken) for taken in prepared.mixture],
    }


def _prune(folder: Path, now: Callable[[], float] = time.time) -> None:
    """Removes what was used longest ago, and stages that a killed process left behind a day ago."""
    with suppress(OSError):
        found = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        stale = [path for path in found if path.name.startswith(".") and now() - path.stat().st_mtime > 86_400]
        for path in stale + [path for path in found if not path.name.startswith(".")][KEPT:]:
            shutil.rmtree(path, ignore_errors=True)
