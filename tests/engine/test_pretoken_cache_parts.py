"""What is kept of a tokenizer, which tokenizers have a cache at all, and how each step's pattern is written for ASCII."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from qlora_studio.engine import pretoken_cache
from qlora_studio.engine.pretoken_cache import BYTE_LEVEL, _pattern, _patterns, in_ascii, make_pretoken_cache

VOCAB = {character: number for number, character in enumerate("abc1Ġ.")} | {"ab": 6, "<s>": 7, "<s>s": 8}
GPT2_ASCII = r"'(?:[sdmt]|ll|ve|re)| ?[a-zA-Z]+| ?[0-9]+| ?[^\sa-zA-Z0-9]+|\s+(?!\S)|\s+"


@pytest.fixture
def small() -> Tokenizer:
    """Letters a to c, of which a and b merge, and two added tokens of which one begins with the other."""
    tokenizer = Tokenizer(models.BPE({name: VOCAB[name] for name in [*"abc1Ġ.", "ab"]}, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in ("<s>", "<s>s")])
    return tokenizer


def test_an_encoding_is_the_tokens_of_its_pieces_each_with_its_characters(small):
    cache = make_pretoken_cache(small)
    text = "ab c<s>sab<s>"
    found = cache.encode(text)
    assert found.ids == [6, 4, 2, 8, 6, 7] == small.encode(text).ids
    assert found.stretches == [(0, 0, ["ab", " c"]), (4, 3, ()), (8, 4, ["ab"]), (10, 5, ())]
    assert found._all_offsets() == [(0, 2), (2, 3), (3, 4), (4, 8), (8, 10), (10, 13)] == small.encode(text).offsets
    assert [found.char_to_token(place) for place in range(14)] == [0, 0, 1, 2, 3, 3, 3, 3, 4, 4, 5, 5, 5, None]
    assert [found.token_to_chars(token) for token in range(7)] == [*found._all_offsets(), None]
    assert found.token_to_chars(-1) is None and found.chars == 13
    assert found.agrees_with(small.encode(text)) and not found.agrees_with(small.encode("ab c<s>sa"))
    assert dict(cache) == {"ab": (6,), " c": (4, 2)}
    assert cache.places == {"ab": [(0, 2)], " c": [(0, 1), (1, 2)]}


def test_an_added_token_alone_or_at_an_edge_has_its_place(small):
    cache = make_pretoken_cache(small)
    for text in ("<s>", "<s><s>", "<s>a", "a<s>", ""):
        found, wanted = cache.encode(text), small.encode(text)
        assert (found.ids, found._all_offsets()) == (wanted.ids, wanted.offsets)
        for token in range(len(wanted.ids)):
            assert found.token_to_chars(token) == wanted.offsets[token]


def test_the_longest_text_is_taken_and_a_longer_one_not(small, monkeypatch):
    monkeypatch.setattr(pretoken_cache, "MOST_CHARS", 3)
    cache = make_pretoken_cache(small)
    assert cache.encode("abc").ids == [6, 2] and cache.encode("abca") is None


def test_a_full_cache_forgets_tokens_and_places_and_begins_anew(small, monkeypatch):
    monkeypatch.setattr(pretoken_cache, "MOST_PRETOKENS", 2)
    cache = make_pretoken_cache(small)
    cache.encode("a b")._all_offsets()
    assert (set(cache), set(cache.places)) == ({"a", " b"}, {"a", " b"})
    assert cache.encode("c").ids == [2]
    assert (set(cache), set(cache.places)) == ({"c"}, set())


def test_a_pretoken_that_is_cut_further_alone_or_a_pattern_with_holes_is_left_to_the_tokenizer(small):
    cache = make_pretoken_cache(small)
    with pytest.raises(pretoken_cache.NotCovered):
        cache["a b"]
    assert cache.encode("a b") is not None
    small.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("b", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert make_pretoken_cache(small) is None, "cut by a text that is no pattern"
    holes = pretoken_cache.PretokenCache(small, ["[a-z]+"], {})
    assert holes.encode("ab 1") is None


def metaspace(tokenizer):
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()


CHANGES = {
    "as it is": (lambda one: None, True),
    "NFC": (lambda one: setattr(one, "normalizer", normalizers.NFC()), True),
    "NFKD": (lambda one: setattr(one, "normalizer", normalizers.NFKD()), True),
    "strips": (lambda one: setattr(one, "normalizer", normalizers.Strip()), False),
    "truncates": (lambda one: one.enable_truncation(5), False),
    "pads": (lambda one: one.enable_padding(), False),
    "dropout": (lambda one: setattr(one.model, "dropout", 0.5), False),
    "metaspace": (metaspace, False),
    "no pre-tokenizer": (lambda one: setattr(one, "pre_tokenizer", pre_tokenizers.Sequence([])), False),
    "whole offsets": (lambda one: setattr(one, "post_processor", processors.ByteLevel(trim_offsets=False)), True),
    "trimmed": (lambda one: setattr(one, "post_processor", processors.ByteLevel(trim_offsets=True)), False),
    "roberta, whole": (
        lambda one: setattr(one, "post_processor", processors.RobertaProcessing(("<s>", 7), ("<s>", 7), trim_offsets=False)),
        True,
    ),
    "roberta, trimmed": (
        lambda one: setattr(one, "post_processor", processors.RobertaProcessing(("<s>", 7), ("<s>", 7), trim_offsets=True)),
        False,
    ),
    "a template": (lambda one: setattr(one, "post_processor", processors.TemplateProcessing("$A <s>", special_tokens=[("<s>", 7)])), True),
    "strips left": (lambda one: one.add_tokens([AddedToken("<x>", lstrip=True, normalized=False)]), False),
    "strips right": (lambda one: one.add_tokens([AddedToken("<x>", rstrip=True, normalized=False)]), False),
    "single word": (lambda one: one.add_tokens([AddedToken("<x>", single_word=True, normalized=False)]), False),
    "two passes": (lambda one: one.add_tokens([AddedToken("<x>", normalized=True)]), False),
    "special as text": (lambda one: setattr(one, "encode_special_tokens", True), False),
}  # fmt: skip


@pytest.mark.parametrize(("change", "cached"), CHANGES.values(), ids=CHANGES)
def test_a_tokenizer_has_a_cache_where_its_tokens_are_those_of_its_pretokens(small, change, cached):
    change(small)
    cache = make_pretoken_cache(small)
    assert (cache is not None) == cached
    if cached:
        text = "ab c<s>b"
        assert cache.encode(text).agrees_with(small.encode(text, add_special_tokens=False))


def split(pattern="x+", behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}


@pytest.mark.parametrize(
    ("step", "pattern"),
    [
        ({"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}, GPT2_ASCII),
        ({"type": "ByteLevel", "add_prefix_space": False}, GPT2_ASCII),
        ({"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}, ""),
        ({"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}, None),
        ({"type": "Digits", "individual_digits": True}, "[0-9]|[^0-9]+"),
        ({"type": "Digits", "individual_digits": False}, "[0-9]+|[^0-9]+"),
        (split({"Regex": "x+|y"}), "x+|y"),
        (split({"String": "x"}), None),
        (split({"Regex": "x"}, "Removed"), None),
        (split({"Regex": "x"}, invert=True), None),
        ({"type": "Whitespace"}, None),
        ({}, None),
    ],
    ids=str,
)
def test_each_step_has_a_pattern_or_none(step, pattern):
    assert _pattern(step) == pattern


def test_steps_are_taken_together_or_not_at_all():
    digits = {"type": "Digits", "individual_digits": True}
    silent = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    assert _patterns(digits) == ["[0-9]|[^0-9]+"]
    assert _patterns({"pretokenizers": [digits, silent, split({"Regex": "x"})]}) == ["[0-9]|[^0-9]+", "x"]
    assert _patterns({"pretokenizers": [digits, {"type": "Punctuation"}]}) == [] == _patterns({})


@pytest.mark.parametrize(
    ("pattern", "written"),
    [
        (BYTE_LEVEL, GPT2_ASCII),
        (r"\p{L}\p{Lo}[\p{Lo}\p{N}]", "[a-zA-Z](?!)[0-9]"),
        (r"[^\]\p{L}]\p{L}", r"[^\]a-zA-Z][a-zA-Z]"),
        (r"\[\p{N}", r"\[[0-9]"),
        (r"[a[\p{N}]\p{N}", r"[a[0-9][0-9]"),
        (r"\p{Thai}", None),
        (r"\PL", None),
        ("(", None),
        ("", None),
    ],
)
def test_a_pattern_says_the_same_of_ascii_text(pattern, written):
    assert in_ascii(pattern) == written
