"""Control tokens typed inside the text of a row, such as `<|im_end|>`: refused, kept, or kept from steering."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache

from qlora_studio.core.errors import StudioError
from qlora_studio.data.render.tokenizer import Tokenizer

_FIRST_MARK = 0xF0000
"""Start of a private use area of Unicode: one stand-in character per control token while a row is rendered."""


class ControlTokenTyped(StudioError):
    """A row whose text holds a control token, with the policy `refuse`."""

    finding = "control-tokens"


@dataclass(frozen=True, slots=True)
class Escapes:
    """How typed control tokens are treated, for one tokenizer."""

    policy: str = "keep"
    tokens: tuple[str, ...] = ()
    pattern: re.Pattern[str] | None = field(default=None, repr=False)
    openings: tuple[str, ...] = ()

    @classmethod
    def make(cls, tokenizer: Tokenizer, policy: str) -> Escapes:
        return _make(tuple(tokenizer.control_tokens), policy)

    def find(self, text: str) -> str | None:
        """The first control token typed in this text."""
        for opening in self.openings:  # a loop and no `any`: this is asked for every turn of every row
            if opening in text:
                break
        else:
            return None
        assert self.pattern is not None
        match = self.pattern.search(text)
        return match[0] if match else None

    def hide(self, text: str, where: str = "", field: str = "") -> str:
        """The text as the template gets it: control tokens refused, or behind stand-ins, or as they are."""
        if self.policy == "keep" or (token := self.find(text)) is None:
            return text
        if self.policy == "refuse":
            raise ControlTokenTyped(
                f"The text holds the control token {token}, which would steer the model.",
                "Set data.control_tokens to escape it (it is then learned as plain characters), or to keep it.",
                where=where,
                field=field,
            )
        assert self.pattern is not None
        return self.pattern.sub(lambda match: chr(_FIRST_MARK + self.tokens.index(match[0])), text)

    def show(self, text: str) -> str:
        """The text with its stand-ins turned back."""
        if self.policy != "escape":
            return text
        return "".join(self.token_of(character) or character for character in text)

    def token_of(self, character: str) -> str | None:
        """The control token this character stands in for."""
        place = ord(character) - _FIRST_MARK
        return self.tokens[place] if self.policy == "escape" and 0 <= place < len(self.tokens) else None

    def split(self, text: str) -> list[str]:
        """The text cut so that every stand-in is a piece of its own."""
        return [piece for piece in re.split(self._marks, text) if piece] if self._marks else [text]

    def has_marks(self, text: str) -> bool:
        """Whether a stand-in is in this text."""
        return bool(self._marks) and re.search(self._marks, text) is not None

    @property
    def _marks(self) -> str:
        """The pattern of any stand-in; empty where there is none."""
        if self.policy != "escape" or not self.tokens:
            return ""
        return f"([{chr(_FIRST_MARK)}-{chr(_FIRST_MARK + len(self.tokens) - 1)}])"


@lru_cache(maxsize=32)
def _make(tokens: tuple[str, ...], policy: str) -> Escapes:
    longest_first = tuple(sorted(filter(None, tokens), key=len, reverse=True))
    if not longest_first:
        return Escapes(policy)
    pattern = re.compile("|".join(map(re.escape, longest_first)))
    return Escapes(policy, longest_first, pattern, tuple({token[:1] for token in longest_first}))
