"""Duplicates among many rows: exact by hash, near by MinHash sketches. About 150 bytes a row, all in flat arrays."""

from __future__ import annotations

import hashlib
import re
import zlib
from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_WORD = re.compile(r"\w+")
_SHINGLE_WORDS = 3
_PERMUTATIONS = 64
_MIXING = 0x9E3779B97F4A7C15
"""2**64 divided by the golden ratio, made odd: Knuth's multiplicative hash."""
_SEED = 20260101
_SHIFT = 24
_EQUAL = 46
"""Sketches that agree in 46 of 64 places: a Jaccard similarity of about 0.72 of the three-word shingles, which is one
word changed in twenty."""
_HELD_WORDS = 1 << 20
_SHORTEST_WORDS = 12
"""Shorter rows differ by one word and mean something else; only exact copies count there."""

Pair = tuple[int, int]
"""A row and the earlier row that it repeats."""


def text_hash(text: str) -> int:
    """64 bits of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def find_equal(hashes: array[int]) -> list[Pair]:
    """Each row whose hash an earlier one has, with the first of them."""
    import numpy as np

    return [(int(late), int(early)) for late, early in _pairs(np.frombuffer(hashes, dtype=np.uint64))]


class _WordNumbers(dict[str, int]):
    """A number for each word, made when it is first met; the others are found without a line of Python."""

    def __missing__(self, word: str) -> int:
        number = self[word] = zlib.crc32(word.encode("utf-8", "surrogatepass"))
        return number


class NearDuplicates:
    """Takes rows in order; then says which are nearly the same as an earlier one."""

    def __init__(self) -> None:
        self.numbers = _WordNumbers()
        self.held = array("Q")
        self.begins = array("q")
        self.rows = array("q")
        self.sketches: list[np.ndarray] = []

    def remember(self, text: str, row: int) -> None:
        """Keeps a row's words for `pairs`."""
        words = _WORD.findall(text.lower())
        if len(words) < _SHORTEST_WORDS:
            return
        self.begins.append(len(self.held))
        self.rows.append(row)
        self.held.extend(map(self.numbers.__getitem__, words))
        if len(self.held) > _HELD_WORDS:
            self._sketch_held()

    def _sketch_held(self) -> None:
        """Turns the words that are held into sketches, so that memory does not grow with the text."""
        import numpy as np

        held, begins = np.frombuffer(self.held, dtype=np.uint64), np.frombuffer(self.begins, dtype=np.int64)
        self.sketches.append(_sketch(held, begins))
        self.held, self.begins, self.numbers = array("Q"), array("q"), _WordNumbers()

    def pairs(self) -> list[Pair]:
        """Rows that are nearly the same as an earlier one, in order."""
        import numpy as np

        if not self.rows:
            return []
        if self.begins:
            self._sketch_held()
        sketches = np.concatenate(self.sketches)
        self.sketches = [sketches]
        found: dict[int, int] = {}
        for keys in np.ascontiguousarray(sketches).view(np.uint64).T:  # four places of 16 bits are a band
            pairs = _pairs(keys)
            late, early = pairs.T
            alike = (sketches[late] == sketches[early]).sum(axis=1) >= _EQUAL
            for row, earlier in pairs[alike].tolist():
                found.setdefault(row, earlier)
        return [(self.rows[row], self.rows[earlier]) for row, earlier in sorted(found.items())]


def _pairs(keys: np.ndarray) -> np.ndarray:
    """Rows whose key an earlier row has, each with the first of its kind; shape (pairs, 2), by row."""
    import numpy as np

    _, first, kind = np.unique(keys, return_index=True, return_inverse=True)
    late = np.flatnonzero(first[kind] != np.arange(len(keys)))
    return np.stack((late, first[kind[late]]), axis=1)


def _sketch(words: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """MinHash sketches, shape (rows, permutations), 16 bits each, of the word shingles of rows that begin here.

    Broder's minimum of a hash over the set; the hashes are multiply-shift (Dietzfelbinger et al. 1997). Sixteen bits of
    a minimum are equal by chance once in 65,536 places.
    """
    import numpy as np

    with np.errstate(over="ignore"):
        shingles = words.copy()
        for step in range(1, _SHINGLE_WORDS):
            shingles = shingles * np.uint64(_MIXING) + np.roll(words, -step)
        # the last shingles of a row would reach into the next: they repeat the row's first one instead
        ends = np.append(begins[1:], len(words))
        for step in range(1, _SHINGLE_WORDS):
            shingles[ends - step] = shingles[begins]
        columns = [np.minimum.reduceat((shingles * factor) >> np.uint64(_SHIFT), begins) for factor in _factors()]
    return np.stack(columns, axis=1).astype(np.uint16)


def _factors() -> np.ndarray:
    """Odd numbers of 64 bits, always the same, shape (permutations,)."""
    import numpy as np

    generator = np.random.default_rng(_SEED)
    return generator.integers(np.iinfo(np.uint64).max, size=_PERMUTATIONS, dtype=np.uint64) | np.uint64(1)
