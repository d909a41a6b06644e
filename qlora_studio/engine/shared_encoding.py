"""Many texts are encoded from both ends: by the tokenizer's own threads from the last, from known pre-tokens from the first.

The tokenizer lets Python go on while it works, so neither waits for the other, and whoever is quicker does more. Which
texts go which way makes no difference to their tokens; a few go both ways, so that a difference would be noticed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

from tokenizers import Encoding, Tokenizer

from qlora_studio.data.render.tokenizer import Encoded, EncodingMistaken
from qlora_studio.engine.pretoken_cache import CachedEncoding, PretokenCache, make_pretoken_cache

_PIECE = 32
"""Texts that the tokenizer takes at once: enough for its threads, few to wait for at the end."""
_CHECKED_EVERY = 64
"""Of the texts of a call one in so many goes both ways, the first always."""


class SharedEncoding:
    """One tokenizer and what is known of its pre-tokens. One call at a time."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.cache: PretokenCache | None = make_pretoken_cache(tokenizer)

    @cached_property
    def _helper(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, "tokenizer")

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Ids without any token added at either end.

        Raises EncodingMistaken where the two ways differ; from then on all texts go to the tokenizer.
        """
        if self.cache is None:
            return list(self._ask(texts))
        work = _Work(texts)
        if os.environ.get("TOKENIZERS_PARALLELISM") == "false":  # no threads, then: in a fork they would never answer
            self._from_the_start(work, self.cache)
        else:
            behind = self._helper.submit(self._from_the_end, work)
            self._from_the_start(work, self.cache)
            behind.result()
        found = work.found
        open_places = [place for place, one in enumerate(found) if one is None]
        checked = [place for place in range(0, len(texts), _CHECKED_EVERY) if isinstance(found[place], CachedEncoding)]
        places = open_places + checked
        for place, encoding in zip(places, self._ask([texts[place] for place in places]), strict=True):
            cached = found[place]
            if isinstance(cached, CachedEncoding) and not cached.agrees_with(encoding):
                self.cache = None
                raise EncodingMistaken
            found[place] = encoding
        return [one for one in found if one is not None]

    def _ask(self, texts: Sequence[str]) -> Sequence[Encoding]:
        return self.tokenizer.encode_batch(list(texts), add_special_tokens=False) if texts else []

    def _from_the_start(self, work: _Work, cache: PretokenCache) -> None:
        while (place := work.take_first()) is not None:
            work.found[place] = cache.encode(work.texts[place])

    def _from_the_end(self, work: _Work) -> None:
        while (piece := work.take_last()) is not None:
            work.found[piece] = self._ask(work.texts[piece])


class _Work:
    """Texts, what was made of them, and which nobody has taken yet."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self.found: list[Encoded | None] = [None] * len(texts)
        self._begin, self._end = 0, len(texts)
        self._lock = threading.Lock()

    def take_first(self) -> int | None:
        """The number of one text; None where all are taken."""
        with self._lock:
            if self._begin == self._end:
                return None
            self._begin += 1
            return self._begin - 1

    def take_last(self) -> slice | None:
        """The numbers of some texts; None where all are taken."""
        with self._lock:
            if self._begin == self._end:
                return None
            end, self._end = self._end, max(self._begin, self._end - _PIECE)
            return slice(self._end, end)
