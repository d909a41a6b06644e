"""Marked text becomes tokens, with a tokenizer that merges `ab`: prompts have the ids that they have alone."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from qlora_studio.core.conversation import Conversation, Pretokenised, Source
from qlora_studio.core.errors import StudioError
from qlora_studio.core.example import Example
from qlora_studio.data.render.control import Escapes
from qlora_studio.data.render.encode import Draft, encode_drafts
from qlora_studio.data.render.templates import TEMPLATES, find_template

END, AB, BEGIN = 1, 2, 3
AT = Source("r", 1)
ROW = Conversation(text="x", source=AT, origin="set")


@dataclass
class Encoded:
    ids: list[int]
    stretches: list[tuple[int, int]]

    def char_to_token(self, place):
        return next((token for token, (start, end) in enumerate(self.stretches) if start <= place < end), None)

    def token_to_chars(self, token):
        return self.stretches[token]


class Merging:
    """Characters are tokens, but `ab` is one, and `<e>` ends a text."""

    def __init__(self, bos=None, begins=False, spaced=False, eats=False):
        self.bos_id, self.eos_id, self.added_tokens, self.control_tokens = (
            bos,
            END,
            {"<s>": BEGIN, "<e>": END},
            {"<e>": END},
        )
        self.begins, self.spaced, self.calls = begins, spaced, 0
        self.pattern = rf"<s>|<e>{' *' * eats}|ab|."

    def encode(self, texts):
        self.calls += 1
        return [self._encode(text) for text in texts]

    def _encode(self, text):
        found = [(match[0].strip() or " ", match.span()) for match in re.finditer(self.pattern, text, re.DOTALL)]
        ids = [{"<e>": END, "<s>": BEGIN, "ab": AB}.get(piece) or ord(piece) for piece, _ in found]
        places = [place for _, place in found]
        if self.spaced and text and not text.startswith("<"):  # a space of its own before a text
            ids, places = [ord(" "), *ids], [(0, 0), *places]
        return Encoded(ids, places)

    def decode(self, ids):
        return "".join({END: "<e>", AB: "ab", BEGIN: "<s>"}.get(one) or chr(one) for one in ids)


def chars(text):
    return tuple({"E": END, "M": AB, "B": BEGIN}.get(one) or ord(one) for one in text)


def made(draft, tokenizer=None, keep_text=True):
    (example,) = encode_drafts([draft], tokenizer or Merging(), keep_text)
    return example


KEPT = Escapes()


def draft(text, starts=(), spans=(), escapes=KEPT, **more):
    return Draft(text, starts, spans, escapes, ROW, **more)


@pytest.mark.parametrize(
    ("one", "ids", "spans"),
    [
        (draft("q:xab", (2,), ((2, 5),)), "q:xM", ((2, 4),)),
        (draft("q:ab", (3,), ((3, 4),)), "q:ab", ((3, 4),)),  # a merge across the edge is cut
        (draft("q:ab<e>", (3,), ((3, 7),)), "q:abE", ((3, 5),)),
        (draft("<e>q:ab", (6,), ((6, 7),)), "Eq:ab", ((4, 5),)),
        (draft("q<e>ab<e>ab", (5, 10), ((5, 9), (10, 11))), "qEabEab", ((3, 5), (6, 7))),
        (draft("ab:ab", (3,), ((3, 5),)), "M:M", ((2, 3),)),
        (draft("xa<e>b", (5,), ((5, 6),)), "xaEb", ((3, 4),)),
        (draft("qab|ab|ab", (2, 5, 8), ((2, 3), (5, 6), (8, 9))), "qab|ab|ab", ((2, 3), (5, 6), (8, 9))),
        (draft("xyz", (), ((0, 1), (1, 2))), "xy", ((0, 2),)),
        (draft("xyz", (), ((0, 1), (1, 1))), "x", ((0, 1),)),
        (draft("xyz", (), ()), "xyz", ()),
        (draft("xyz", (), ((0, 1),), ends_at_span=False), "xyz", ((0, 1),)),
        (draft("", (), ()), "", ()),
    ],
)  # fmt: skip
def test_ids_and_spans(one, ids, spans):
    found = made(one)
    assert (found.input_ids, found.spans) == (chars(ids), spans)
    assert (found.source, found.origin) == (AT, "set")
    bare = made(one, keep_text=False)
    assert bare == Example(found.input_ids, found.spans, source=AT, origin="set")


def test_a_text_is_shown_as_far_as_it_is_trained():
    found = made(draft("q:xy rest", (2,), ((2, 4),)))
    assert (found.text, found.text_spans) == ("q:xy", ((2, 4),))
    assert made(draft("q:xy rest", (2,), ((2, 4),), ends_at_span=False)).text == "q:xy rest"
    assert made(draft("q:xy", (2,), ())).text == "q:xy"


@pytest.mark.parametrize(
    ("text", "spans", "ids", "made_spans"),
    [
        ("xy", ((1, 2),), "Bxy", ((2, 3),)),
        ("<s>xy", ((4, 5),), "Bxy", ((2, 3),)),
        ("<s><s>xy", ((7, 8),), "Bxy", ((2, 3),)),
        ("<s>xy", ((0, 5),), "Bxy", ((0, 3),)),
        ("<s>x<s>", ((3, 7),), "BxB", ((1, 3),)),
        ("<s>", ((0, 3),), "B", ((0, 1),)),
    ],
)
def test_a_row_begins_with_one_beginning_token(text, spans, ids, made_spans):
    found = made(draft(text, (), spans), Merging(bos=BEGIN))
    assert (found.input_ids, found.spans) == (chars(ids), made_spans)


ESCAPES = Escapes.make(Merging(), "escape")
MARK = chr(0xF0000)


@pytest.mark.parametrize(
    ("text", "starts", "spans", "ids", "made_spans", "shown"),
    [
        (f"x{MARK}y", (), ((0, 3),), "x<e>y", ((0, 5),), "x<e>y"),
        (f"x{MARK}ab", (2,), ((2, 4),), "x<e>M", ((4, 5),), "x<e>ab"),
        (f"q{MARK}{MARK}z", (1,), ((1, 3),), "q<e><e>", ((1, 7),), "q<e><e>"),
        (f"ab{MARK}<e>", (2,), ((2, 6),), "M<e>E", ((1, 5),), "ab<e><e>"),
        ("xab", (), ((1, 3),), "xM", ((1, 2),), "xab"),
    ],
)
def test_a_typed_control_token_is_learned_as_plain_characters(text, starts, spans, ids, made_spans, shown):
    found = made(draft(text, starts, spans, ESCAPES))
    assert (found.input_ids, found.spans, found.text) == (chars(ids), made_spans, shown)
    assert [found.text[start:end] for start, end in found.text_spans] == [
        ESCAPES.show(text[start:end]) for start, end in spans
    ]


def test_a_space_that_a_tokenizer_puts_before_a_text_stays_out_of_its_middle():
    spaced = Merging(spaced=True)
    found = made(draft("qa" + "b" + "z", (2,), ((2, 4),)), spaced)
    assert (found.input_ids, found.spans) == (chars(" qabz"), ((3, 5),))
    typed = made(draft(f"x{MARK}y", (), ((1, 3),), ESCAPES), spaced)
    assert (typed.input_ids, typed.spans) == (chars(" x<e>y"), ((2, 6),))


def test_a_space_that_an_end_token_takes_along_stays_where_it_was_written():
    found = made(draft(f"q{MARK}  z", (), ((2, 5),), ESCAPES), Merging(eats=True))
    assert (found.input_ids, found.spans) == (chars("q<e>  z"), ((4, 7),))


@pytest.mark.parametrize(
    ("labels", "spans"),
    [
        ((-100, -100, -100), ()),
        ((5, 6, 7), ((0, 3),)),
        ((-100, 6, 7), ((1, 3),)),
        ((5, -100, 7), ((0, 1), (2, 3))),
        ((5, -100, -100), ((0, 1),)),
    ],
)
def test_given_tokens_are_trained_where_their_labels_say(labels, spans):
    row = Conversation(tokens=Pretokenised((5, 6, 7), labels), source=AT, origin="set")
    tokenizer = Merging(bos=BEGIN)
    assert made(Draft("", (), (), Escapes(), row), tokenizer) == Example((5, 6, 7), spans, source=AT, origin="set")


def test_all_texts_are_encoded_in_one_call_and_stay_in_order():
    given = Draft("", (), (), Escapes(), Conversation(tokens=Pretokenised((9,), (9,))))
    tokenizer = Merging()
    found = encode_drafts(
        [draft("xy", (), ((0, 2),)), given, draft(f"{MARK}", (), ((0, 1),), ESCAPES), draft("z", (), ((0, 1),))],
        tokenizer,
    )
    assert [one.input_ids for one in found] == [chars("xy"), (9,), chars("<e>"), chars("z")]
    quick = Merging()
    encode_drafts([draft("xy"), draft("z")], quick)
    assert quick.calls == 1
    encode_drafts([draft("q:xy", (2,), ((2, 4),)), draft("q:z", (2,), ((2, 3),))], quick)
    assert quick.calls == 3, "a prompt that several rows share is encoded alone once"


def test_a_named_template_needs_its_tokens():
    assert find_template("dialogue", ()) is TEMPLATES["dialogue"]
    assert find_template("chatml", {"<|im_start|>": 1, "<|im_end|>": 2}) is TEMPLATES["chatml"]
    with pytest.raises(StudioError) as caught:
        find_template("chatml-tools", {"<|im_end|>": 2})
    assert str(caught.value) == (
        "field 'model.template': The template 'chatml-tools' needs <|im_start|>, which this model's tokenizer does not have. "
        "Choose instruction or dialogue."
    )
    with pytest.raises(StudioError) as caught:
        find_template("x", ())
    assert str(caught.value) == (
        "field 'model.template': There is no chat template 'x'. There are: instruction, dialogue, chatml, chatml-tools."
    )
