"""How long rows are in tokens, and what a limit would cost. Numbers only, for the preview and the planner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import quantiles


@dataclass(frozen=True, slots=True)
class LengthReport:
    """The lengths of rows beside a limit."""

    rows: int
    shortest: int
    median: int
    p95: int
    longest: int
    over: int
    """Rows longer than the limit."""
    tokens_over: int
    """Tokens of those rows beyond the limit."""
    padded_tokens: int
    """Tokens computed when every row within the limit is padded to the limit."""
    packed_tokens: int
    """Tokens computed when the same rows stand one after another without padding."""
    bins: tuple[tuple[int, int, int], ...]
    """The histogram: from (inclusive), to (exclusive), rows."""

    @property
    def padding_avoided(self) -> float:
        """Share of the padded computation that packing saves, 0 to 1."""
        return 1 - self.packed_tokens / self.padded_tokens if self.padded_tokens else 0.0


def measure_lengths(lengths: Sequence[int], limit: int, bins: int = 24) -> LengthReport:
    """The report of these lengths. Bins have equal width and reach to the longest row or the limit."""
    if not lengths:
        return LengthReport(0, 0, 0, 0, 0, 0, 0, 0, 0, ())
    ordered = sorted(lengths)
    cuts = quantiles(ordered, n=20, method="inclusive") if len(ordered) > 1 else [float(ordered[0])] * 19
    within = [length for length in ordered if length <= limit]
    width = max(1, -(-(max(ordered[-1], limit) + 1) // bins))
    counts = [0] * bins
    for length in ordered:
        counts[min(length // width, bins - 1)] += 1
    return LengthReport(
        rows=len(ordered),
        shortest=ordered[0],
        median=round(cuts[9]),
        p95=round(cuts[18]),
        longest=ordered[-1],
        over=len(ordered) - len(within),
        tokens_over=sum(length - limit for length in ordered if length > limit),
        padded_tokens=len(within) * limit,
        packed_tokens=sum(within),
        bins=tuple((index * width, (index + 1) * width, count) for index, count in enumerate(counts)),
    )
