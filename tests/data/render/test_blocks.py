"""Raw text in blocks, for a tokenizer that begins texts with a token of its own."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from qlora_studio.core.example import Example
from qlora_studio.data.render.blocks import cut_text

BEGIN, TEXT = 1, "One mill stands. Two wheels turn. Three boats wait. Four bells ring. "
IDS = (BEGIN, *map(ord, TEXT))


@dataclass
class Letters:
    """A character a token."""

    ids: list[int]
    bos: bool

    def token_to_chars(self, index):
        place = index - self.bos
        return (place, place + 1) if 0 <= place < len(TEXT) else None


def tokenizer(bos_in_encoding):
    def encode(texts):
        return [Letters([BEGIN] * bos_in_encoding + list(map(ord, text)), bos_in_encoding) for text in texts]

    return SimpleNamespace(bos_id=BEGIN, encode=encode)


def blocks(ids=IDS, limit=36, overlap=0, bos_in_encoding=False):
    example = Example(ids, ((0, len(ids)),))
    return list(cut_text(example, TEXT, tokenizer(bos_in_encoding), limit, overlap))


def read(block):
    start = block.spans[0][0]
    return "".join(map(chr, block.input_ids[max(start, 1) :]))


@pytest.mark.parametrize("bos_in_encoding", [False, True])
def test_each_block_begins_as_the_text_does_and_ends_behind_a_sentence(bos_in_encoding):
    found = blocks(bos_in_encoding=bos_in_encoding)
    assert [read(block) for block in found] == [
        "One mill stands. Two wheels turn. ", "Three boats wait. Four bells ring. ",
    ]  # fmt: skip
    assert [block.input_ids[0] for block in found] == [BEGIN, BEGIN]
    assert [block.spans for block in found] == [((0, 35),), ((1, 36),)], "the first token is trained once"


ONE, TWO, THREE, FOUR = "One mill stands. ", "Two wheels turn. ", "Three boats wait. ", "Four bells ring. "


@pytest.mark.parametrize(
    ("limit", "overlap", "texts"),
    [
        (70, 0, [TEXT]),
        (69, 0, [ONE + TWO + THREE, FOUR]),
        (35, 0, [ONE + TWO, THREE, FOUR]),
        (34, 0, [ONE, TWO, THREE, FOUR]),
        (20, 0, [ONE, TWO, THREE, FOUR]),
        # a place in the first half of a block is no good one: of ` sta` and `. Th` the space is
        (5, 0, ["One ", "mill", " sta", "nds.", " Two", " whe", "els ", "turn", ". Th", "ree ", "boat", "s wa", "it. ",
                "Four", " bel", "ls ", "ring", ". "]),
        (2, 0, list(TEXT)),
        # five or ten tokens are repeated beside the beginning token, and the rest is as long as it may be
        (20, 5, [ONE, "Two wheels ", "turn. Three ", "boats wait. ", "Four bells ", "ring. "]),
        (20, 10, [ONE, "Two wheel", "s turn. ", "Three ", "boats ", "wait. ", "Four ", "bells ", "ring. "]),
        (20, 99, [ONE, "Two wheel", "s turn. ", "Three ", "boats ", "wait. ", "Four ", "bells ", "ring. "]),
    ],
)  # fmt: skip
def test_a_block_ends_at_the_best_place_in_its_second_half(limit, overlap, texts):
    found = blocks(limit=limit, overlap=overlap)
    assert [read(block) for block in found] == texts
    assert max(len(block.input_ids) for block in found) <= limit
    repeated = min(overlap, limit // 2)
    assert [block.spans for block in found[1:]] == [((1 + repeated, len(block.input_ids)),) for block in found[1:]]


def test_what_is_repeated_is_not_trained():
    first, second, third = blocks(overlap=10)
    assert "".join(map(read, (first, second, third))) == TEXT
    assert second.spans[0][0] == third.spans[0][0] == 11
    assert second.input_ids[1:11] == first.input_ids[-10:]


def test_more_than_half_of_a_block_is_never_repeated():
    assert blocks(overlap=1000)[1].spans[0][0] == 1 + 18


def test_tokens_that_are_not_those_of_the_text_are_cut_where_the_block_is_full():
    changed = (*IDS[:5], ord("x"), *IDS[6:])
    found = blocks(ids=changed)
    assert [len(block.input_ids) for block in found] == [36, 1 + len(TEXT) - 35]
    assert "".join(map(read, found)) == "".join(map(chr, changed[1:]))
