"""How rows are cut into micro-batches, packed or padded. Pure arithmetic, for the engine and for who foretells its time."""

from __future__ import annotations

from collections.abc import Sequence

GRAIN = 64
"""Packed rows are filled up to a multiple of so many tokens: a processor's libraries keep a plan for every new shape, and
memory grew with their number (docs/memory.md)."""


def tokens_of(lengths: Sequence[int], *, packed: bool) -> int:
    """Tokens of a micro-batch with rows of these lengths, padding included. A row alone is never padded."""
    if not packed:
        return len(lengths) * max(lengths)
    return sum(lengths) if len(lengths) == 1 else -(-sum(lengths) // GRAIN) * GRAIN


def cut_rows(rows: Sequence[int], lengths: Sequence[int], micro_batch_tokens: int, *, packed: bool) -> list[list[int]]:
    """Positions in `rows`, in groups that stay within `micro_batch_tokens`; longest rows first.

    `lengths` are those of the data, by row. A row longer than the bound stands alone: it cannot be made smaller.
    """
    groups: list[list[int]] = []
    for place in sorted(range(len(rows)), key=lambda place: (-lengths[rows[place]], rows[place])):
        for group in groups if packed else groups[-1:]:
            if tokens_of([lengths[rows[one]] for one in (*group, place)], packed=packed) <= micro_batch_tokens:
                group.append(place)
                break
        else:
            groups.append([place])
    return groups
