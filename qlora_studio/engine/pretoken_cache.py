"""Texts become tokens from pre-tokens that were met before: most words of a data set were.

A byte-pair tokenizer first cuts a text at its added tokens and then, by a pattern, into pre-tokens (a word with the space
before it, a number, a run of signs), and merges bytes inside each of them alone. So the tokens of a text are those of its
pre-tokens in a row, and each of these is asked of the tokenizer once. The patterns are written for Unicode; here only
ASCII text is cut, for which Python's `re` means the same by them. Every other text, and every tokenizer that is built in
another way, goes to the tokenizer itself; so does one text in a few dozen, and both must agree (`shared_encoding.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

from tokenizers import Encoding, Tokenizer

MOST_PRETOKENS = 1 << 17
"""Kept at once; then it begins anew. A million rows of one kind have some hundred thousand."""
MOST_CHARS = 1 << 16
"""Of a text; in longer ones a place is looked for too long."""
BYTE_LEVEL = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The pattern inside the pre-tokenizer ByteLevel (GPT-2's)."""
CLASSES = {
    "L": "a-zA-Z", "N": "0-9", "Nd": "0-9", "Lu": "A-Z", "Ll": "a-z",
    "Lt": "", "Lm": "", "Lo": "", "M": "", "Mn": "", "Mc": "", "Han": "",
}  # fmt: skip
"""What is ASCII of the classes that patterns name."""
_CLASS = re.compile(r"\\p\{(\w+)\}")

Place = tuple[int, int, Sequence[str]]
"""Where a stretch of text begins, in characters and in tokens, and its pre-tokens; none where it is an added token."""


class NotCovered(Exception):
    """A pre-token that the tokenizer cuts further when it stands alone."""


class PretokenCache(dict[str, tuple[int, ...]]):
    """The tokens of each pre-token met so far, of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, patterns: Sequence[str], added: dict[str, int]) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.stages = [re.compile(pattern, re.ASCII).findall for pattern in patterns]
        self.added = added
        longest_first = sorted(added, key=len, reverse=True)
        self.split = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})").split
        self.places: dict[str, list[tuple[int, int]]] = {}
        """The characters of each token of a pre-token, for those that were asked."""

    def __missing__(self, pretoken: str) -> tuple[int, ...]:
        if len(self) >= MOST_PRETOKENS:
            self.clear()
            self.places.clear()
        if len(self.tokenizer.pre_tokenizer.pre_tokenize_str(pretoken)) != 1:
            raise NotCovered
        ids = self[pretoken] = tuple(self.tokenizer.encode(pretoken, add_special_tokens=False).ids)
        return ids

    def encode(self, text: str) -> CachedEncoding | None:
        """The tokens of a text; None where only the tokenizer itself can say them."""
        if len(text) > MOST_CHARS or not text.isascii():
            return None
        ids: list[int] = []
        stretches: list[Place] = []
        chars = 0
        try:
            for number, stretch in enumerate(self.split(text)):
                if number % 2:
                    stretches.append((chars, len(ids), ()))
                    ids.append(self.added[stretch])
                elif stretch:
                    pretokens = self._cut(stretch)
                    stretches.append((chars, len(ids), pretokens))
                    ids += chain.from_iterable(map(self.__getitem__, pretokens))
                chars += len(stretch)
        except NotCovered:
            return None
        return CachedEncoding(ids, stretches, chars, self)

    def _cut(self, stretch: str) -> list[str]:
        """Its pre-tokens. Raises NotCovered where they are not all of it."""
        pretokens = self.stages[0](stretch)
        for cut in self.stages[1:]:
            pretokens = [inner for pretoken in pretokens for inner in cut(pretoken)]
        if sum(map(len, pretokens)) != len(stretch):
            raise NotCovered
        return pretokens

    def places_in(self, pretoken: str) -> list[tuple[int, int]]:
        """The characters of each of its tokens, as the tokenizer gives them for the pre-token alone."""
        if pretoken not in self.places:
            self.places[pretoken] = self.tokenizer.encode(pretoken, add_special_tokens=False).offsets
        return self.places[pretoken]


class CachedEncoding:
    """Token ids of one text and where its characters went: an `Encoded` of the data room."""

    __slots__ = ("cache", "chars", "ids", "offsets", "stretches")

    def __init__(self, ids: list[int], stretches: list[Place], chars: int, cache: PretokenCache) -> None:
        self.ids, self.stretches, self.chars, self.cache = ids, stretches, chars, cache
        self.offsets: list[tuple[int, int]] | None = None

    def char_to_token(self, char_pos: int) -> int | None:
        for begin, token, pretokens in reversed(self.stretches):
            if begin <= char_pos < self.chars:
                return self._token_in(begin, token, pretokens, char_pos) if pretokens else token
        return None

    def agrees_with(self, encoding: Encoding) -> bool:
        """Whether the tokenizer itself gives these tokens, and each for the same characters: they decide what is trained."""
        return self.ids == encoding.ids and list(self._all_offsets()) == encoding.offsets

    def _token_in(self, begin: int, token: int, pretokens: Sequence[str], char_pos: int) -> int | None:
        for pretoken in pretokens:
            if char_pos < begin + len(pretoken):
                places = self.cache.places_in(pretoken)
                inside = (number for number, (left, right) in enumerate(places) if left <= char_pos - begin < right)
                found = next(inside, None)
                return None if found is None else token + found
            begin += len(pretoken)
            token += len(self.cache[pretoken])
        return None

    def token_to_chars(self, token_index: int) -> tuple[int, int] | None:
        for number, (begin, token, pretokens) in enumerate(self.stretches):
            if token == token_index and not pretokens:
                following = self.stretches[number + 1 : number + 2]
                return begin, following[0][0] if following else self.chars
        if self.offsets is None:
            self.offsets = list(self._all_offsets())
        return self.offsets[token_index] if 0 <= token_index < len(self.offsets) else None

    def _all_offsets(self) -> list[tuple[int, int]]:
        found = []
        for number, (begin, _, pretokens) in enumerate(self.stretches):
            if not pretokens:
                following = self.stretches[number + 1 : number + 2]
                found.append((begin, following[0][0] if following else self.chars))
            for pretoken in pretokens:
                found += [(begin + left, begin + right) for left, right in self.cache.places_in(pretoken)]
                begin += len(pretoken)
        return found


def make_pretoken_cache(tokenizer: Tokenizer) -> PretokenCache | None:
    """A cache for this tokenizer; None where its tokens are not those of its pre-tokens in a row."""
    if type(tokenizer.model).__name__ != "BPE" or tokenizer.model.dropout or tokenizer.truncation or tokenizer.padding:
        return None
    normalizer = _state(tokenizer.normalizer)
    if normalizer and normalizer["type"] not in ("NFC", "NFKC", "NFD", "NFKD"):  # these leave ASCII as it is
        return None
    after = _state(tokenizer.post_processor)
    if any(step.get("trim_offsets") for step in after.get("processors", [after])):
        return None  # where a token begins then depends on where in the text it stands
    patterns = _patterns(_state(tokenizer.pre_tokenizer))
    added = tokenizer.get_added_tokens_decoder()
    if not patterns or any(one.lstrip or one.rstrip or one.single_word for one in added.values()):
        return None
    if len({one.normalized for one in added.values()}) > 1 or tokenizer.encode_special_tokens:
        return None  # added tokens are then looked for in two passes, or not at all
    return PretokenCache(tokenizer, patterns, {one.content: index for index, one in added.items() if one.content})


def _state(part: Any) -> dict[str, Any]:
    """A part of a tokenizer as its file says it; empty where there is none."""
    values: dict[str, Any] = json.loads(part.__getstate__()) if part is not None else {}
    return values


def _patterns(pre_tokenizer: dict[str, Any]) -> list[str]:
    """What each step of a pre-tokenizer cuts by; none where one of them does something else."""
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    found = [_pattern(step) for step in steps]
    return [pattern for pattern in found if pattern] if None not in found else []


def _pattern(step: dict[str, Any]) -> str | None:
    """The pattern of one step; empty where it cuts nothing, None where it cannot be said."""
    kind = step.get("type")
    if kind == "ByteLevel" and not step["add_prefix_space"]:
        return in_ascii(BYTE_LEVEL) if step.get("use_regex", True) else ""
    if kind == "Digits":
        return "[0-9]|[^0-9]+" if step["individual_digits"] else "[0-9]+|[^0-9]+"
    if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        return in_ascii(step["pattern"].get("Regex", ""))
    return None


def in_ascii(pattern: str) -> str | None:
    """The same pattern for ASCII text as Python writes it; None where it names what is not known here."""
    if not pattern or any(name not in CLASSES for name in _CLASS.findall(pattern)) or r"\P" in pattern:
        return None
    made, inside, place = [], False, 0
    while place < len(pattern):
        named = _CLASS.match(pattern, place)
        if named:
            within = CLASSES[named[1]]
            made.append(within if inside else f"[{within}]" if within else "(?!)")
            place = named.end()
        elif pattern[place] == "\\":
            made.append(pattern[place : place + 2])
            place += 2
        else:
            inside = pattern[place] == "[" or (inside and pattern[place] != "]")
            made.append(pattern[place])
            place += 1
    try:
        re.compile("".join(made), re.ASCII)
    except re.error:
        return None
    return "".join(made)
