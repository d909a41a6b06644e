"""Text of a JSON document that is read on as far as the next value needs it, and skipped where a row is broken."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.data.readers.rows import MAX_LINE_BYTES, MAX_LINE_MB, Unseen
from qlora_studio.data.readers.strict_json import (
    DECODER,
    NotStrict,
    broken,
    check_characters,
    check_depth,
    find_balanced_end,
    skip_space,
)
from qlora_studio.data.readers.text_file import DecodedText

_SEARCHED_CHARS = 4 * MAX_LINE_BYTES
"""How far the next row is looked for behind a broken one."""
_LOOKED_AT_FIRST = 1 << 16
_LONGEST_GAP = 256
_EDGE_CHARS = 16
"""An error so near the end of what was read may only be a literal whose rest is missing."""

_FIRST_KEY = re.compile(r'\{\s*("[^"\\\n]*")\s*:')
_MARK = re.compile(r"[,\]]")


class JsonBuffer:
    """A place in the text of a document, its line, and what rows of this document begin with."""

    def __init__(self, decoded: DecodedText, chunks: Iterator[str], file: str) -> None:
        self.decoded, self.chunks, self.file = decoded, chunks, file
        self.text, self.place, self.line = "", 0, 1
        self.ended = False
        self.gap, self.keys = "", ()

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"

    def more(self) -> bool:
        """Reads on; False at the end of the file."""
        if self.ended:
            return False
        chunk = next(self.chunks, None)
        if chunk is None:
            self.ended = True
            return False
        self.text = self.text[self.place :] + chunk
        self.place = 0
        return True

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            self.advance(skip_space(self.text, self.place))
            if self.place < len(self.text):
                return self.text[self.place]
            if not self.more():
                return ""

    def advance(self, place: int) -> None:
        self.line += self.text.count("\n", self.place, place)
        self.place = place

    def take(self) -> str:
        character = self.peek()
        self.advance(self.place + len(character))
        return character

    def mark_gap(self) -> None:
        """Remembers the white space before the next row: by it the next row is found behind a broken one."""
        if len(self.text) - self.place < _LONGEST_GAP:
            self.more()
        self.gap = self.text[self.place : skip_space(self.text, self.place)]

    def holds_rows(self, is_row: Callable[[Any], bool]) -> bool:
        """Whether the first item of the list that begins here is a row."""
        while len(self.text) - self.place < MAX_LINE_BYTES:
            try:
                item = skip_space(self.text, self.place + 1)
                return is_row(json.JSONDecoder().raw_decode(self.text, item)[0])
            except (ValueError, RecursionError):
                if not self.more():
                    break
        return self.text[skip_space(self.text, self.place + 1) :].startswith("{")

    def row(self) -> Any:
        """The value that begins here, which is a row; its keys are what the next row is found by."""
        value = self.value()
        if isinstance(value, dict) and value and not self.keys:
            self.keys = tuple(value)
        return value

    def value(self) -> Any:
        """The JSON value that begins here. Raises a StudioError with the line where it goes wrong; the place then stays."""
        wanted = 0
        while True:
            if len(self.text) - self.place >= wanted or self.ended:
                try:
                    value, end = DECODER.raw_decode(self.text, self.place)
                except (ValueError, RecursionError) as error:
                    if self._is_final(error):
                        self._check_bytes(error.pos if isinstance(error, json.JSONDecodeError) else self.place)
                        raise broken(error, self.text, self.where, self.place) from None
                    wanted = min(2 * (len(self.text) - self.place), MAX_LINE_BYTES)
                else:
                    if end < len(self.text) or self.ended or not isinstance(value, int | float):
                        self._check(end)
                        self.advance(end)
                        return value
            if len(self.text) - self.place > MAX_LINE_BYTES:
                raise StudioError(
                    f"This row is longer than {MAX_LINE_MB} MB, or a quote or bracket never closes.",
                    "Look at this row, or split it.",
                    where=self.where,
                )
            self.more()

    def _is_final(self, error: Exception) -> bool:
        """Whether the error stands even when more text follows."""
        if self.ended or isinstance(error, RecursionError | NotStrict):
            return True
        if not isinstance(error, json.JSONDecodeError):
            return True
        return not error.msg.startswith("Unterminated string") and error.pos < len(self.text) - _EDGE_CHARS

    def _check(self, end: int) -> None:
        raw = self.text[self.place : end]
        self._check_bytes(end)
        if len(raw) > MAX_LINE_BYTES:
            raise StudioError(f"This row is longer than {MAX_LINE_MB} MB.", "Split the row.", where=self.where)
        try:
            check_depth(raw)
            check_characters(raw)
        except NotStrict as error:
            raise broken(error, raw, self.where) from None

    def _check_bytes(self, end: int) -> None:
        if self.decoded.damaged and (found := self.decoded.find_bad_byte(self.text[self.place : end])):
            line = self.line + self.text.count("\n", self.place, self.place + found.start())
            raise StudioError.of([self.decoded.not_text(found, f"{self.file}:{line}")])

    def skip_row(self) -> None:
        """Goes to the end of a broken row. Raises a StudioError where nobody can say where the next one begins.

        The row ends where its brackets close, unless something that begins like the rows before stands inside: then
        a quote or bracket of it never closed, and the next row begins there.
        """
        pattern = self._beginning()
        wanted = _LOOKED_AT_FIRST
        while True:
            while len(self.text) - self.place < wanted and self.more():
                pass
            # what stands before the end of the buffer may be half of a beginning: look again when there is more
            following = pattern.search(self.text, self.place + 1) if pattern else None
            stop = following.start() if following else len(self.text)
            if self.text[self.place : self.place + 1] in ("[", "{"):
                end = find_balanced_end(self.text, self.place, stop)
            else:  # no row: up to the next comma or bracket, unless a row is known to follow
                found = None if following else _MARK.search(self.text, self.place, stop)
                end = found.start() if found else -1
            if end >= 0 and (after := self._after(end)) is not None and after in ",]":
                self.advance(end)
                return
            if following:
                self.advance(following.start())
                return
            if self.ended:
                break
            if len(self.text) - self.place > _SEARCHED_CHARS:
                break
            wanted = 2 * (len(self.text) - self.place)
        closing = re.search(r"\]\s*[\s}]*\Z", self.text[self.place :]) if self.ended else None
        if closing and pattern:
            self.advance(self.place + closing.start())
            return
        raise StudioError(
            "Behind this broken row the next one cannot be found.",
            "Fix this row, or save the file again.",
            where=self.where,
        )

    def _beginning(self) -> re.Pattern[str] | None:
        """What a row begins with: a comma, the same white space as before, and one of the keys of a row.

        Before any row was read, what is left of the first key of the broken one stands for the keys.
        """
        if self.keys:
            names = "|".join(re.escape(json.dumps(key, ensure_ascii=False)) for key in self.keys)
            return re.compile(rf",{re.escape(self.gap)}\{{\s*(?:{names})\s*:")
        first = _FIRST_KEY.match(self.text, self.place)
        return re.compile(rf",\s*\{{\s*{re.escape(first[1])}\s*:") if first else None

    def _after(self, end: int) -> str | None:
        """The character behind a place, white space aside; None where it has not been read yet."""
        place = skip_space(self.text, end)
        if place < len(self.text):
            return self.text[place]
        return "" if self.ended else None

    def unseen(self, problem: Problem) -> Unseen:
        """The rest of the document, measured."""
        characters = len(self.text) - self.place
        for chunk in self.chunks:
            characters += len(chunk)
        self.text, self.place, self.ended = "", 0, True
        message = f"{problem.message} The {characters} characters from here on were not seen."
        return Unseen(Problem(message, problem.hint, problem.where, problem.field))
