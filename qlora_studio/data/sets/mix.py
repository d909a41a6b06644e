"""Several sets become one, in the shares that were asked for. What is left out or repeated is counted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class Part:
    """One set of a mixture."""

    name: str
    weight: float
    sizes: Sequence[int]
    """1 for each row, or its tokens, as the weights count."""
    max_repeats: int = 1
    """How often one row may be taken."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What a mixture takes of one set."""

    name: str
    rows: int
    """Rows in the mixture, each as often as it stands there."""
    of_rows: int
    size: int
    """Rows or tokens, as the weights count."""
    share: float
    """Of the whole mixture, 0 to 1."""
    epochs: float = 1.0
    """How often the set is gone through in one pass over the mixture."""


def mix(parts: Sequence[Part], seed: int) -> tuple[list[list[int]], tuple[Taken, ...]]:
    """The largest mixture in which each part has its share, as the numbers of the rows taken of each part.

    With weights w, sizes n and repeats r the total is min(r_i * n_i / w_i) * sum(w). Whole passes over a part are
    taken first, then rows in an order that the seed and its name decide, until its share is reached.
    """
    totals = [sum(part.sizes) for part in parts]
    filled = [(total * part.max_repeats, part.weight) for total, part in zip(totals, parts, strict=True) if total]
    unit = min((total / weight for total, weight in filled), default=0.0)
    chosen: list[list[int]] = []
    for part, total in zip(parts, totals, strict=True):
        wanted = unit * part.weight
        passes = int(wanted / total) if total else 0
        rows = list(range(len(part.sizes))) * passes
        rows += _choose(part.name, part.sizes, wanted - passes * total, seed)
        chosen.append(sorted(rows))
    sizes = [sum(part.sizes[row] for row in rows) for part, rows in zip(parts, chosen, strict=True)]
    whole = sum(sizes)
    return chosen, tuple(
        Taken(part.name, len(rows), len(part.sizes), size, size / whole if size else 0.0, size / total if size else 0.0)
        for part, rows, size, total in zip(parts, chosen, sizes, totals, strict=True)
    )


def _choose(name: str, sizes: Sequence[int], wanted: float, seed: int) -> list[int]:
    """Rows whose sizes come as near to `wanted` as whole rows allow."""
    order = list(range(len(sizes)))
    Random(hashlib.sha256(f"{seed}:{name}".encode()).digest()).shuffle(order)
    kept: list[int] = []
    filled = 0
    for index in order:
        if filled + sizes[index] / 2 > wanted:
            break
        kept.append(index)
        filled += sizes[index]
    return kept
