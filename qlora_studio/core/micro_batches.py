"""How rows are cut into micro-batches, packed or padded. Pure arithmetic, for the engine and for who foretells its time."""

from __future__ import annotations

from collections.abc import Sequence

GRAIN = 64
"""Packed rows are filled up to a multiple of so many tokens: a processor's libraries keep a plan for every new shape, and
memory grew with their number, by 770 MiB over 150 rows of SmolLM2's width (docs/memory.md)."""


def filled(tokens: int) -> int:
    """Tokens up to the next multiple of GRAIN."""
    return -(-tokens // GRAIN) * GRAIN


def tokens_of(lengths: Sequence[int], *, packed: bool) -> int:
    """Tokens of a micro-batch with rows of these lengths, padding included."""
    return filled(sum(lengths)) if packed else len(lengths) * max(lengths)


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
