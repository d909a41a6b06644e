"""The tokenizer in a GGUF file cuts every text as the model's own does, and a kind that is not known is refused."""

from __future__ import annotations

import json

import pytest

from qlora_studio.core.errors import StudioError
from qlora_studio.engine.gguf_file import vocabulary
from qlora_studio.engine.gguf_file.vocabulary import TokenType, name_of_split, read_vocabulary
from qlora_studio.engine.gguf_file.write import About
from qlora_studio.engine.tokenizer import load_tokenizer
from tests.engine.gguf_file.small_models import small_base, write_gguf
from tests.engine.gguf_file.small_tokenizers import KINDS, nasty_texts, save, train
from tests.llama_cpp import LlamaCpp
from tests.matrix import mostly_slow


@pytest.mark.parametrize("kind", mostly_slow(KINDS, "smollm", "pieces"))
def test_200_texts_are_cut_alike_by_llama_cpp(kind, tmp_path):
    base = small_base("llama", tmp_path / "base", tokenizer=kind)
    tokenizer = load_tokenizer(base)
    read = LlamaCpp(write_gguf(base, tmp_path, "F16", About("small")))
    texts = nasty_texts()
    assert len(texts) == 200
    ours = [list(one.ids) for one in tokenizer.encode(texts)]
    different = [text for text, ids in zip(texts, ours, strict=True) if read.tokenize(text) != ids]
    assert different == []
    assert read.template == tokenizer.template and read.adds_bos == (tokenizer.bos_id is not None)
    assert read.ends(tokenizer.eos_id)
    read.close()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("pieces")])
def test_the_name_follows_from_the_rule(kind):
    assert name_of_split(json.loads(train(kind, 300).to_str())) == kind


@pytest.mark.parametrize(
    "change",
    [
        {"type": "Whitespace"},
        {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True},
        {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Isolated"},
                                               {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]},
        None,
    ],
)  # fmt: skip
def test_a_rule_without_a_name_is_refused_and_never_guessed(change):
    values = json.loads(train("gpt-2", 300).to_str()) | {"pre_tokenizer": change}
    with pytest.raises(StudioError, match=r"a rule for splitting words that llama\.cpp's names do not cover here"):
        name_of_split(values)


def test_more_tokens_than_rows_are_refused_and_fewer_are_filled_up(tmp_path):
    save("gpt-2", tmp_path, 300)
    tokenizer = load_tokenizer(tmp_path)
    filled = read_vocabulary(tokenizer, 310)
    assert len(filled.tokens) == len(filled.types) == 310 and filled.tokens[-1] == "[PAD309]"
    with pytest.raises(StudioError, match="The tokenizer has 300 tokens and the model rows for 299"):
        read_vocabulary(tokenizer, 299)


def test_every_id_has_a_kind_and_pieces_have_the_scores_of_their_merges():
    added = {
        0: {"content": "<unk>", "special": True},
        1: {"content": "<s>", "special": True},
        2: {"content": "a▁b", "special": False},
    }
    known = {0: "<unk>", 3: "<0x0A>", 4: "ab", 5: "abc", 6: "z", 7: "<unk>"}
    pieces = [vocabulary._token(index, known, added, "<unk>") for index in range(9)]
    assert pieces == [
        ("<unk>", TokenType.UNKNOWN), ("<s>", TokenType.CONTROL), ("a b", TokenType.USER_DEFINED),
        ("<0x0A>", TokenType.BYTE), ("ab", TokenType.NORMAL), ("abc", TokenType.NORMAL), ("z", TokenType.NORMAL),
        ("<unk>", TokenType.UNKNOWN), ("[PAD8]", TokenType.UNUSED),
    ]  # fmt: skip
    plain = [vocabulary._token(index, known, added, None) for index in (0, 2, 3, 7)]
    assert plain == [
        ("<unk>", TokenType.CONTROL), ("a▁b", TokenType.USER_DEFINED), ("<0x0A>", TokenType.NORMAL),
        ("<unk>", TokenType.NORMAL),
    ]  # fmt: skip
    merges = [["a", "b"], ["ab", "c"], ["a", "bc"]]
    scores = vocabulary._scores([text for text, _ in pieces], [kind for _, kind in pieces], merges)
    assert scores == (-10000.0, -1000.0, -1000.0, 0.0, 0.0, -1.0, -4.0, -10000.0, -10000.0)


@pytest.mark.parametrize(
    ("values", "prefixes"),
    [
        ({"normalizer": {"type": "Prepend", "prepend": "▁"}}, True),
        ({"normalizer": {"type": "Prepend"}, "pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "never"}}, True),
        ({"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "first"}}, True),
        ({"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "never"}}, False),
        ({"pre_tokenizer": {"type": "Metaspace", "add_prefix_space": False}}, False),
        ({"pre_tokenizer": {"type": "ByteLevel"}}, False),
        ({}, False),
    ],
)
def test_whether_a_space_comes_first_follows_from_the_rule(values, prefixes):
    assert vocabulary._prefixes_space(values) == prefixes


QWEN = next(pattern for pattern, name in vocabulary.SPLITS.items() if name == "qwen2")
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}


def cut_by(**changes):
    """A tokenizer.json that cuts by Qwen 2's rule, or nearly so."""
    split = {"type": "Split", "pattern": {"Regex": QWEN}, "behavior": "Isolated", "invert": False} | changes
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, BYTES]}, "model": {}}


def test_a_rule_has_its_name_only_where_every_part_of_it_is_the_same():
    assert vocabulary.name_of_split(cut_by()) == "qwen2"
    for changes in ({"invert": True}, {"behavior": "Removed"}, {"pattern": {"Regex": QWEN + "|x"}}, {"pattern": None}):
        with pytest.raises(StudioError, match="a rule for splitting words"):
            vocabulary.name_of_split(cut_by(**changes))
