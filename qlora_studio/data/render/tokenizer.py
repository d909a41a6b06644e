"""What this room asks of a tokenizer. The engine brings a real one; no model library is known here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class EncodingMistaken(Exception):
    """Two ways to encode a text gave different tokens: everything must be encoded again, the plain way."""


class Encoded(Protocol):
    """Token ids of one text, and where its characters went."""

    @property
    def ids(self) -> list[int]: ...

    def char_to_token(self, char_pos: int) -> int | None:
        """Index of the token that holds this character; None where no token does."""
        ...

    def token_to_chars(self, token_index: int) -> tuple[int, int] | None:
        """The half-open stretch of characters of this token."""
        ...


class Tokenizer(Protocol):
    """A chat model's tokenizer together with its template."""

    @property
    def template(self) -> str:
        """Source of the chat template; empty where the model has none."""
        ...

    @property
    def digest(self) -> str:
        """The hash of all that decides its tokens: vocabulary, merges, special tokens and chat template."""
        ...

    @property
    def bos_id(self) -> int | None:
        """The token every row must begin with; None where the model begins with none."""
        ...

    @property
    def eos_id(self) -> int | None: ...

    @property
    def vocabulary(self) -> int:
        """How many token ids there are; every id is smaller."""
        ...

    @property
    def added_tokens(self) -> Mapping[str, int]:
        """Every token that is recognised whole inside a text, before any merging."""
        ...

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """Those of the added tokens that steer the model and must not be typed in data."""
        ...

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The template's text. Raises a StudioError where the template refuses the messages."""
        ...

    def encode(self, texts: Sequence[str]) -> Sequence[Encoded]:
        """Ids without any token added at either end. Control tokens in the text become control tokens.

        Raises EncodingMistaken at most once in the life of a tokenizer.
        """
        ...

    def stop_caching(self) -> None:
        """From here on every text goes to the tokenizer itself, none to what is known of others."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids, control tokens included, nothing tidied."""
        ...
