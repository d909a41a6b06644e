"""Tokens from known pre-tokens are those of the tokenizer itself, with the same places; what cannot be known is left."""

import random

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from qlora_studio.core.config import DataConfig
from qlora_studio.core.conversation import Conversation, Turn
from qlora_studio.data.render.tokenizer import EncodingMistaken
from qlora_studio.data.sets.prepare import prepare
from qlora_studio.engine import pretoken_cache
from qlora_studio.engine.pretoken_cache import CachedEncoding, in_ascii, make_pretoken_cache
from qlora_studio.engine.shared_encoding import SharedEncoding
from qlora_studio.engine.tokenizer import load_tokenizer

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGITS_FIRST = [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
PIECES = ["the", "Hello", "it's", "I'LL", "x", "  ", "\n\n", " \n ", "\t", "4567", "''s", "<|im_start|>", "<|im_", "|>"]


def split_by(pattern):
    return [
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


@pytest.fixture
def inner(smollm2):
    """A tokenizer that a test may change."""
    return Tokenizer.from_file(str(smollm2 / "tokenizer.json"))


def make_texts(count, seed=1):
    chance = random.Random(seed)

    def piece():
        letters = "".join(chance.choices(" abcXYZ'09.,\n", k=3))
        return chance.choice([chr(chance.randrange(128)), chance.choice(PIECES), letters])

    return ["".join(piece() for _ in range(chance.randrange(40))) for _ in range(count)]


@pytest.mark.parametrize(
    "steps",
    [None, DIGITS_FIRST, split_by(LLAMA_3), split_by(O200K)],
    ids=["own", "digits-first", "llama-3", "o200k"],
)
def test_tokens_and_their_places_are_those_of_the_tokenizer(inner, steps):
    if steps is not None:
        inner.pre_tokenizer = pre_tokenizers.Sequence(steps)
    cache = make_pretoken_cache(inner)
    for text in make_texts(400):
        ours, theirs = cache.encode(text), inner.encode(text, add_special_tokens=False)
        assert ours.ids == theirs.ids, text
        for place in range(-1, len(text) + 2):
            assert place < 0 or ours.char_to_token(place) == theirs.char_to_token(place), text
        for index in range(len(theirs.ids) + 1):
            assert ours.token_to_chars(index) == theirs.token_to_chars(index), text


def test_other_text_and_long_text_is_left_to_the_tokenizer(inner):
    cache = make_pretoken_cache(inner)
    assert cache.encode("caf\u00e9") is None
    assert cache.encode("a" * (pretoken_cache.MOST_CHARS + 1)) is None


def change(inner, what):
    if what == "prefix space":
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    elif what == "metaspace":
        inner.pre_tokenizer = pre_tokenizers.Metaspace()
    elif what == "no pre-tokenizer":
        inner.pre_tokenizer = pre_tokenizers.Sequence([])
    elif what == "lower case":
        inner.normalizer = normalizers.Lowercase()
    elif what == "trimmed offsets":
        inner.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True)])
    elif what == "added token that takes spaces":
        inner.add_tokens([AddedToken("<mask>", lstrip=True, normalized=False)])
    elif what == "added tokens in two passes":
        inner.add_tokens([AddedToken("<note>", normalized=True)])
    elif what == "dropout":
        inner.model.dropout = 0.1
    elif what == "another model":
        inner.model = models.WordLevel({"a": 0}, unk_token="a")


@pytest.mark.parametrize(
    "what",
    [
        "prefix space", "metaspace", "no pre-tokenizer", "lower case", "trimmed offsets", "added token that takes spaces",
        "added tokens in two passes", "dropout", "another model",
    ],
)  # fmt: skip
def test_tokenizers_that_are_built_in_another_way_have_no_cache(inner, what):
    assert make_pretoken_cache(inner) is not None
    change(inner, what)
    assert make_pretoken_cache(inner) is None


def test_patterns_that_name_unknown_classes_are_not_written_for_ascii():
    assert in_ascii(r"\p{Greek}+|.") is None and in_ascii(r"\P{L}+") is None and in_ascii("(") is None
    assert in_ascii(r"\p{L}+|[^\p{N}\]]|\p{Lo}") == r"[a-zA-Z]+|[^0-9\]]|(?!)"


def test_the_cache_does_not_grow_without_end(inner, monkeypatch):
    monkeypatch.setattr(pretoken_cache, "MOST_PRETOKENS", 50)
    cache = make_pretoken_cache(inner)
    for text in make_texts(100):
        assert cache.encode(text).ids == inner.encode(text, add_special_tokens=False).ids
        assert len(cache) <= 50


@pytest.mark.parametrize(
    "threads", ["0", "false"]
)  # "0" is none for the tokenizer, which could not be forked after them
def test_many_texts_are_shared_and_stay_in_order(inner, monkeypatch, threads):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", threads)
    texts = [text + ("\u00e9" if number % 7 == 0 else "") for number, text in enumerate(make_texts(300))]
    shared = SharedEncoding(inner)
    found = shared.encode(texts)
    assert ("_helper" in vars(shared)) == (threads == "0"), "a fork must not wait for a thread it does not have"
    assert [one.ids for one in found] == [one.ids for one in inner.encode_batch(texts, add_special_tokens=False)]


def test_a_difference_is_noticed_once_and_the_tokenizer_does_it_all(inner, monkeypatch):
    shared, texts = SharedEncoding(inner), ["a plain word"] * 64
    monkeypatch.setattr(shared, "_from_the_end", lambda work: None)
    assert all(isinstance(one, CachedEncoding) for one in shared.encode(texts)[1:])
    shared.cache[" plain"] = (1,)
    with pytest.raises(EncodingMistaken):
        shared.encode(texts)
    right = inner.encode(texts[0], add_special_tokens=False).ids
    assert [one.ids for one in shared.encode(texts)] == [right] * 64


def test_tokens_that_are_right_at_other_characters_are_a_difference_too(inner, monkeypatch):
    """A token's characters decide whether it is trained."""
    shared, texts = SharedEncoding(inner), ["a plain word"] * 64
    monkeypatch.setattr(shared, "_from_the_end", lambda work: None)
    shared.encode(texts)
    places = shared.cache.places_in(" plain")
    shared.cache.places[" plain"] = [(left + 1, right) for left, right in places]
    with pytest.raises(EncodingMistaken):
        shared.encode(texts)


def test_rows_are_prepared_again_where_the_quick_way_was_wrong(smollm2):
    rows = [Conversation(turns=(Turn("user", f"question {n}"), Turn("assistant", "an answer"))) for n in range(40)]
    right = prepare(rows, load_tokenizer(smollm2), DataConfig()).examples
    tokenizer = load_tokenizer(smollm2)
    tokenizer._shared.cache["user"] = (1,)
    tokenizer._shared._from_the_end = lambda work: None
    assert prepare(rows, tokenizer, DataConfig()).examples == right
    assert tokenizer._shared.cache is None


def test_a_tokenizer_that_stops_caching_does_it_all_itself(smollm2):
    tokenizer, texts = load_tokenizer(smollm2), ["a plain word"] * 64
    assert any(isinstance(one, CachedEncoding) for one in tokenizer.encode(texts))
    tokenizer.stop_caching()
    assert not any(isinstance(one, CachedEncoding) for one in tokenizer.encode(texts))
