"""Several sets become one, in the shares that were asked for. No row is used twice; what is left out is counted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Part(Generic[T]):
    """One set of a mixture."""

    name: str
    weight: float
    items: Sequence[T]


@dataclass(frozen=True, slots=True)
class Taken:
    """What a mixture takes of one set."""

    name: str
    rows: int
    of_rows: int
    size: int
    """Rows or tokens, as the weights count."""
    share: float
    """Of the whole mixture, 0 to 1."""


def mix(parts: Sequence[Part[T]], size: Callable[[T], int], seed: int) -> tuple[list[T], tuple[Taken, ...]]:
    """The largest mixture in which each part's size has its share and nothing is repeated.

    With weights w and sizes n the total is min(n_i / w_i) * sum(w); each part gives rows in an order that the seed and
    its name decide, until its share is reached. One part is taken whole. The result keeps the order of parts and rows.
    """
    sizes = [[size(item) for item in part.items] for part in parts]
    totals = [sum(each) for each in sizes]
    filled = [(total, part.weight) for total, part in zip(totals, parts, strict=True) if total]
    unit = min((total / weight for total, weight in filled), default=0.0)
    mixed: list[T] = []
    chosen: list[tuple[Part[T], int, int]] = []
    for part, each, total in zip(parts, sizes, totals, strict=True):
        wanted = unit * part.weight
        kept = range(len(each)) if wanted >= total * (1 - 1e-12) else _choose(part.name, each, wanted, seed)
        mixed += [part.items[index] for index in kept]
        chosen.append((part, len(kept), sum(each[index] for index in kept)))
    whole = sum(taken for _, _, taken in chosen) or 1
    return mixed, tuple(Taken(part.name, rows, len(part.items), taken, taken / whole) for part, rows, taken in chosen)


def _choose(name: str, sizes: Sequence[int], wanted: float, seed: int) -> list[int]:
    """Indexes whose sizes come as near to `wanted` as whole rows allow, in their old order."""
    order = list(range(len(sizes)))
    Random(hashlib.sha256(f"{seed}:{name}".encode()).digest()).shuffle(order)
    kept: list[int] = []
    filled = 0
    for index in order:
        if filled + sizes[index] / 2 > wanted:
            break
        kept.append(index)
        filled += sizes[index]
    return sorted(kept)
