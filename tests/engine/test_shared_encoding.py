"""Which texts are taken from which end, and which of them are looked at twice."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qlora_studio.data.render.tokenizer import EncodingMistaken
from qlora_studio.engine import shared_encoding
from qlora_studio.engine.pretoken_cache import CachedEncoding
from qlora_studio.engine.shared_encoding import SharedEncoding, _Work


def test_texts_are_taken_one_by_one_from_the_start_and_in_pieces_from_the_end(monkeypatch):
    monkeypatch.setattr(shared_encoding, "_PIECE", 3)
    work = _Work(list("abcdefgh"))
    assert work.found == [None] * 8
    taken = [work.take_first(), work.take_last(), work.take_first(), work.take_last(), work.take_last()]
    assert taken == [0, slice(5, 8), 1, slice(2, 5), None]
    assert work.take_first() is None and _Work([]).take_first() is None and _Work([]).take_last() is None


def test_the_last_piece_may_be_smaller(monkeypatch):
    monkeypatch.setattr(shared_encoding, "_PIECE", 3)
    work = _Work(list("abcd"))
    assert [work.take_last(), work.take_last(), work.take_last()] == [slice(1, 4), slice(0, 1), None]


class Cached(CachedEncoding):
    """From the start: which text it was, and whether the tokenizer agrees."""

    def __init__(self, text, agrees=True) -> None:
        self.text, self.agrees = text, agrees

    def agrees_with(self, encoding):
        assert encoding == f"asked {self.text}"
        return self.agrees


@pytest.fixture
def shared(monkeypatch):
    """Its tokenizer notes what it is asked; its cache knows no text that begins with `?` and errs in those with `!`."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setattr(shared_encoding, "_CHECKED_EVERY", 3)
    one, asked = SharedEncoding.__new__(SharedEncoding), []

    def encode_batch(texts, add_special_tokens):
        assert add_special_tokens is False and texts
        asked.append(texts)
        return [f"asked {text}" for text in texts]

    one.tokenizer = SimpleNamespace(encode_batch=encode_batch)
    one.cache = SimpleNamespace(encode=lambda text: None if text[0] == "?" else Cached(text, "!" not in text))
    return one, asked


def test_every_third_text_and_those_that_are_not_known_are_asked_of_the_tokenizer(shared):
    one, asked = shared
    found = one.encode(["a", "b", "?c", "d", "e", "f", "?g", "h"])
    assert asked == [["?c", "?g", "a", "d"]]
    names = [text if isinstance(text, str) else text.text for text in found]
    assert names == ["asked a", "b", "asked ?c", "asked d", "e", "f", "asked ?g", "h"]


def test_an_error_in_a_text_that_is_looked_at_ends_the_quick_way_for_good(shared):
    one, asked = shared
    assert len(one.encode(["a", "!b"])) == 2, "the second is not looked at"
    with pytest.raises(EncodingMistaken):
        one.encode(["!a", "b"])
    assert one.cache is None
    asked.clear()
    assert one.encode(["!a", "b"]) == ["asked !a", "asked b"] and asked == [["!a", "b"]]
    assert one.encode([]) == []


def test_with_threads_one_goes_from_the_start_and_another_from_the_end(shared, monkeypatch):
    one, asked = shared
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    monkeypatch.setattr(SharedEncoding, "_from_the_end", lambda self, work: None)
    found = one.encode(["a", "b", "c"])
    assert [type(text) for text in found] == [str, Cached, Cached] and asked == [["a"]], (
        "one of three is looked at twice"
    )

    def fail(self, work):
        raise RuntimeError("the tokenizer broke")

    monkeypatch.setattr(SharedEncoding, "_from_the_end", fail)
    with pytest.raises(RuntimeError, match="the tokenizer broke"):
        one.encode(["a"])
