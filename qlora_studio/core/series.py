"""A growing row of points, as a value: adding one leaves the older value as it was and copies nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, overload

Along = Literal["step", "tokens", "seconds"]
"""What curves are laid over each other by."""
Point = tuple[int, float]
"""Step and value."""


class Series(Sequence[Point]):
    """Points by rising step. `add` costs the same for the ten-thousandth point as for the first.

    Values share one list and differ in how much of it they show; only the longest may grow it, any other copies first.
    """

    __slots__ = ("_length", "_points")

    def __init__(self, points: Sequence[Point] = ()) -> None:
        self._points = list(points)
        self._length = len(self._points)

    def add(self, step: int, value: float) -> Series:
        """With one more point; points at this step and later are dropped: a run that goes on computes them anew."""
        kept = self if not self or self[-1][0] < step else self.up_to(step - 1)
        points = kept._points if kept._length == len(kept._points) else kept._points[: kept._length]
        points.append((step, value))
        return _view(points, kept._length + 1)

    def up_to(self, step: int) -> Series:
        """Only the points at this step and before."""
        length = self._length
        while length and self._points[length - 1][0] > step:
            length -= 1
        return _view(self._points, length)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Point: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Point, ...]: ...
    def __getitem__(self, index: int | slice) -> Point | tuple[Point, ...]:
        if isinstance(index, slice):
            return tuple(self._points[place] for place in range(*index.indices(self._length)))
        return self._points[range(self._length)[index]]

    def __iter__(self) -> Iterator[Point]:
        return (self._points[place] for place in range(self._length))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"Series({list(self)!r})"


def _view(points: list[Point], length: int) -> Series:
    series = Series()
    series._points, series._length = points, length
    return series
