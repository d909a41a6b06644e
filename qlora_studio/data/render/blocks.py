"""Raw text longer than the max sequence length becomes blocks: cut by tokens, at paragraph or sentence ends."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from qlora_studio.core.example import Example
from qlora_studio.data.render.tokenizer import Encoded, Tokenizer

_ENDS = (
    re.compile(r"\n\s*\n\s*\Z"),
    re.compile(r"[.!?\u2026][\"')\]\u201d\u00bb]*\s+\Z|[\u3002\uff01\uff1f]\s*\Z|\n\s*\Z"),
    re.compile(r"\s\Z"),
)
"""What a block likes to end with, the best first: a paragraph, a sentence or line, a word."""
_LOOKED_BACK_CHARS = 40


def cut_text(example: Example, text: str, tokenizer: Tokenizer, limit: int, overlap: int) -> Iterator[Example]:
    """Blocks of at most `limit` tokens that together train every token of the example once.

    A block begins with the beginning token where the model has one, then with `overlap` tokens of the block before,
    which are read and not trained. Only the last one carries the end of text.
    """
    ids = example.input_ids
    bos = int(tokenizer.bos_id is not None)
    encoding = tokenizer.encode([text])[0]
    # tokens and characters belong together only where the example is the plain encoding of the text
    places = encoding if tuple(encoding.ids[-(len(ids) - bos) :]) == ids[bos:] else None
    shift = len(encoding.ids) - len(ids)
    begins, overlap = bos, min(overlap, limit // 2)
    while begins < len(ids):
        repeated = min(overlap, begins - bos)
        most = begins + limit - bos - repeated
        ends = len(ids) if most >= len(ids) else _best_end(text, places, (begins, most), shift)
        block = ids[:bos] + ids[begins - repeated : ends]
        first = bos + repeated if begins > bos else 0
        yield replace(example, input_ids=block, spans=((first, len(block)),), text="", text_spans=())
        begins = ends


def _best_end(text: str, places: Encoded | None, stretch: tuple[int, int], shift: int) -> int:
    """The token behind which a block of this stretch ends: the last good place in its second half, else its end."""
    begins, most = stretch
    if places is None:
        return most
    for pattern in _ENDS:
        for index in range(most, begins + (most - begins) // 2, -1):
            chars = places.token_to_chars(index + shift)
            if chars is None:
                continue
            place, _ = chars
            if pattern.search(text, place - _LOOKED_BACK_CHARS, place):
                return index
    return most
