"""What rendered rows show: counted, with the first places, and with what a limit took away."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qlora_studio.core.conversation import Conversation, Pretokenised, Source, Turn
from qlora_studio.core.dataset import Finding
from qlora_studio.core.errors import StudioError
from qlora_studio.core.example import Example
from qlora_studio.data.cleaning.row_findings import TokenFindings

BEGIN, END, VOCABULARY = 1, 2, 100


def findings(bos=BEGIN):
    return TokenFindings(SimpleNamespace(control_tokens={"<s>": BEGIN, "</s>": END}, vocabulary=VOCABULARY, bos_id=bos))


def example(ids, *spans):
    return Example(tuple(ids), spans)


def chat(line=1):
    return Conversation(turns=(Turn("user", "q"), Turn("assistant", "a")), source=Source("r", line))


def names(found):
    return {finding.name: finding.examples for finding in found.findings()}


@pytest.mark.parametrize(
    ("ids", "spans", "name"),
    [
        ((5, 6), ((1, 2),), ""),
        ((5, 6), (), "nothing-trained"),
        ((5, 6), ((0, 1),), "nothing-trained"),
        ((5, 99), ((1, 2),), ""),
        ((5, 100), ((1, 2),), "unknown-token"),
        ((100, 5), ((1, 2),), "unknown-token"),
    ],
)
def test_what_keeps_a_row_from_being_trained(ids, spans, name):
    assert findings().unusable(example(ids, *spans)) == name


GIVEN = Conversation(tokens=Pretokenised((1,), (1,)), source=Source("r", 1))
RAW = Conversation(text="x", source=Source("r", 1))


@pytest.mark.parametrize(
    ("bos", "ids", "conversation", "name"),
    [
        (BEGIN, (1, 5, 6, 2), chat(), ""),
        (BEGIN, (1, 1, 6, 2), chat(), "double-bos"),
        (BEGIN, (5, 1, 1, 2), chat(), ""),
        (BEGIN, (1, 5, 1, 2), chat(), ""),
        (None, (5, 5, 6, 2), chat(), ""),
        (BEGIN, (1, 5, 6, 7), chat(), "missing-end"),
        (BEGIN, (1, 2, 6, 7), chat(), "missing-end"),
        (BEGIN, (1, 5, 6, 7), RAW, ""),
        (BEGIN, (1, 5, 6, 7), GIVEN, ""),
        (BEGIN, (1, 1, 6, 7), GIVEN, "double-bos"),
    ],
)
def test_what_a_rendered_row_shows(bos, ids, conversation, name):
    found = findings(bos)
    found.look(example(ids, (1, 2), (2, 4)), conversation)
    assert names(found) == ({name: ("r:1",)} if name else {})


def test_an_answer_ends_with_the_last_token_that_is_trained():
    found = findings()
    found.look(example((1, 5, 2, 9), (1, 3)), chat())
    assert names(found) == {}


def test_five_places_are_shown_with_what_was_wrong():
    found = findings()
    for line in range(1, 8):
        found.note("template-refuses", f"r:{line}", StudioError(f"No {line}.", "Hint."))
    assert found.findings() == (
        Finding(
            name="template-refuses", severity="error", count=7, message="The chat template refuses 7 rows.",
            examples=tuple(f"r:{line}: No {line}." for line in range(1, 6)),
            hint="Fix the rows or choose another template.", setting="data.accepted=template-refuses",
        ),
    )  # fmt: skip


def test_one_row_is_one_row_and_settings_stand_as_they_are_typed():
    found = findings()
    found.note("bad-example", "r:1")
    found.note("control-tokens", "r:2")
    found.note("nothing-trained", "r:3")
    assert [(one.name, one.message, one.setting) for one in found.findings()] == [
        ("control-tokens", "Control tokens are typed inside the text of 1 row.", "data.control_tokens=escape"),
        ("nothing-trained", "Nothing would be trained in 1 row.", "data.accepted=nothing-trained"),
        ("bad-example", "1 row labelled as bad is left out.", ""),
    ]


def test_what_a_limit_takes_away_is_counted_in_trained_tokens():
    found = findings()
    long, short = example(range(20), (5, 20)), example(range(12), (5, 12))
    found.too_long("r:1", long, 10, None)
    found.too_long("r:2", long, 12, short)
    found.too_long("r:3", long, 12, short)
    found.too_long("r:4", long, 10, None)
    assert [(one.message, one.examples) for one in found.findings()] == [
        (
            "2 rows longer than the limit are left out, with 30 trained tokens.",
            ("r:1: 20 tokens, limit 10", "r:4: 20 tokens, limit 10"),
        ),
        (
            "2 rows longer than the limit are cut by 16 trained tokens.",
            ("r:2: 20 tokens cut to 12", "r:3: 20 tokens cut to 12"),
        ),
    ]


def test_rows_cut_by_nothing_trained_lose_nothing():
    found = findings()
    found.note("cut", "r:1")
    assert found.findings()[0].message == "1 row longer than the limit is cut by 0 trained tokens."


def test_later_rows_are_added_behind_the_earlier_ones():
    first, later = findings(), findings()
    for line in range(1, 5):
        first.note("bad-example", f"r:{line}")
    for line in range(5, 8):
        later.note("bad-example", f"r:{line}")
    later.too_long("r:8", example(range(9), (1, 9)), 5, None)
    first.too_long("r:0", example(range(9), (2, 9)), 5, None)
    first.add(later)
    assert first.counts == {"bad-example": 7, "too-long": 2} and first.lost == {"too-long": 15}
    assert names(first) == {
        "bad-example": tuple(f"r:{line}" for line in range(1, 6)),
        "too-long": ("r:0: 9 tokens, limit 5", "r:8: 9 tokens, limit 5"),
    }
    empty = findings()
    empty.add(later)
    assert (empty.counts, empty.lost, names(empty)) == (later.counts, later.lost, names(later))
