"""Duplicates among many rows: exact by hash, near by MinHash sketches. A few hundred bytes a row."""

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
_PERMUTATIONS, _BANDS = 32, 8
_EQUAL = 28
"""Sketches that agree in 28 of 32 places: a Jaccard similarity of about 0.87 of the three-word shingles."""
_HELD_WORDS = 1 << 20
_SHORTEST_WORDS = 12
"""Shorter rows differ by one word and mean something else; only exact copies count there."""


class Duplicates:
    """Looks at rows in order and says which repeat an earlier one."""

    def __init__(self) -> None:
        self.seen: dict[bytes, int] = {}
        self.words: dict[str, int] = {}
        self.held = array("Q")
        self.begins: list[int] = []
        self.rows: list[int] = []
        self.sketches: list[np.ndarray] = []

    def exact(self, text: str, row: int) -> int | None:
        """The earlier row with exactly this text, if any."""
        key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        earlier = self.seen.setdefault(key, row)
        return None if earlier == row else earlier

    def remember(self, text: str, row: int) -> None:
        """Keeps a row's words for `near`."""
        words = _WORD.findall(text.lower())
        if len(words) < _SHORTEST_WORDS:
            return
        self.begins.append(len(self.held))
        self.rows.append(row)
        self.held.extend([self._number(word) for word in words])
        if len(self.held) > _HELD_WORDS:
            self._sketch_held()

    def _sketch_held(self) -> None:
        """Turns the words that are held into sketches, so that memory does not grow with the text."""
        import numpy as np

        self.sketches.append(_sketch(np.frombuffer(self.held, dtype=np.uint64), np.array(self.begins)))
        self.held, self.begins, self.words = array("Q"), [], {}

    def _number(self, word: str) -> int:
        number = self.words.get(word)
        if number is None:
            number = self.words[word] = zlib.crc32(word.encode("utf-8", "surrogatepass"))
        return number

    def near(self) -> list[tuple[int, int]]:
        """Pairs (row, earlier row) of remembered rows that are nearly the same."""
        import numpy as np

        if not self.rows:
            return []
        if self.begins:
            self._sketch_held()
        sketches = np.concatenate(self.sketches)
        found: dict[int, int] = {}
        width = _PERMUTATIONS // _BANDS
        for band in range(_BANDS):
            self._match(sketches, sketches[:, band * width : (band + 1) * width], found)
        return [(self.rows[late], self.rows[early]) for late, early in sorted(found.items())]

    def _match(self, sketches: np.ndarray, band: np.ndarray, found: dict[int, int]) -> None:
        """Rows that agree in a band are compared whole, each with the first of its bucket."""
        first: dict[bytes, int] = {}
        for row, key in enumerate(map(bytes, band)):
            earlier = first.setdefault(key, row)
            if earlier != row and row not in found and int((sketches[row] == sketches[earlier]).sum()) >= _EQUAL:
                found[row] = earlier


def _sketch(words: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """MinHash sketches, shape (rows, permutations), of the word shingles of rows that begin at these places.

    Broder's minimum of a hash over the set; the 32 hashes are multiply-shift (Dietzfelbinger et al. 1997).
    """
    import numpy as np

    with np.errstate(over="ignore"):
        shingles = words.copy()
        for step in range(1, _SHINGLE_WORDS):
            shingles = shingles * np.uint64(0x9E3779B97F4A7C15) + np.roll(words, -step)
        # the last shingles of a row would reach into the next: they repeat the row's first one instead
        ends = np.append(begins[1:], len(words))
        for step in range(1, _SHINGLE_WORDS):
            shingles[ends - step] = shingles[begins]
        generator = np.random.default_rng(20260101)
        factors = generator.integers(1, 2**63, _PERMUTATIONS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        columns = [np.minimum.reduceat((shingles * factor) >> np.uint64(32), begins) for factor in factors]
    return np.stack(columns, axis=1).astype(np.uint32)
