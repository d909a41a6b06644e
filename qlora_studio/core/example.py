"""A row as the model sees it: token ids and which of them are trained. Made by data/render, used by everyone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qlora_studio.core.conversation import NOWHERE, Source

IGNORED = -100
"""The label of a position that is not trained (torch's cross-entropy default)."""


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids, and the half-open spans `[start, end)` of them that are trained."""

    input_ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    text: str = ""
    """What the ids say, control tokens included; empty where only ids are needed."""
    text_spans: tuple[tuple[int, int], ...] = ()
    """The half-open stretches of `text` that are trained."""
    source: Source = NOWHERE
    origin: str = ""

    @property
    def trained_tokens(self) -> int:
        """Positions that carry loss. The first token of a row has nothing before it and can carry none."""
        if len(self.spans) == 1:
            start, end = self.spans[0]
            return max(end - max(start, 1), 0)
        return sum(end - max(start, 1) for start, end in self.spans if end > max(start, 1))

    def labels(self) -> list[int]:
        """Token ids where trained, `IGNORED` elsewhere; same length as `input_ids`."""
        labels = [IGNORED] * len(self.input_ids)
        for start, end in self.spans:
            labels[start:end] = self.input_ids[start:end]
        return labels


def token_lengths(examples: Sequence[Example]) -> Sequence[int]:
    """Tokens of each example; of those on disk without making any."""
    known: Sequence[int] | None = getattr(examples, "token_lengths", None)
    return known if known is not None else [len(example.input_ids) for example in examples]


def origins(examples: Sequence[Example]) -> Iterable[str]:
    """The set that each example belongs to; of those on disk without making any."""
    known: Iterable[str] | None = getattr(examples, "origins", None)
    return known if known is not None else (example.origin for example in examples)
