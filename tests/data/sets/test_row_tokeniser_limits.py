"""Limits to the token: what just fits, what is cut where, and what is counted of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qlora_studio.core.config import DataConfig
from qlora_studio.core.conversation import Conversation, Pretokenised, Segment, Source, Turn
from qlora_studio.core.errors import StudioError
from qlora_studio.core.example import Example
from qlora_studio.data.render.prompt import render
from qlora_studio.data.sets.prepare import Progress, Stopped, Watch, _batches, check_rows, count_tokens, prepare
from qlora_studio.data.sets.row_tokeniser import Counts, _last_trained, cut_answer

LIMIT = 64


def chat(*contents, system="", line=1, **more):
    turns = tuple(Turn("assistant" if place % 2 else "user", words) for place, words in enumerate(contents))
    head = (Turn("system", system),) if system else ()
    return Conversation(turns=(*head, *turns), source=Source("r", line), **more)


def of_length(letters, tokens):
    """A row of exactly so many tokens: 22 stand around an answer of letters."""
    row = chat("hi", "o" * (tokens - 22))
    assert len(render(row, letters)[0].input_ids) == tokens
    return row


@pytest.mark.parametrize("way", ["drop", "cut_oldest", "cut_answer"])
def test_a_row_that_just_fits_is_trained_whole(letters, way):
    made = prepare(
        [of_length(letters, LIMIT), of_length(letters, LIMIT + 1)], letters, DataConfig(max_length=LIMIT, too_long=way)
    )
    kept = [len(example.input_ids) for example in made.examples]
    assert kept == ([64, 64] if way == "cut_answer" else [64])
    assert (made.rows, made.too_long, made.dropped, made.cut) == (
        2,
        1,
        int(way != "cut_answer"),
        int(way == "cut_answer"),
    )
    assert list(made.lengths) == [64, 65], "as they were before anything was cut, each once"
    assert (made.tokens, made.trained_tokens) == count_tokens(made.examples)


def test_raw_text_that_just_fits_is_one_block(letters):
    for count, blocks in ((63, [64]), (64, [64, 1])):
        made = prepare([Conversation(text="x" * count)], letters, DataConfig(max_length=LIMIT))
        assert [len(example.input_ids) for example in made.examples] == blocks
        assert list(made.lengths) == blocks and made.too_long == 0
        assert [finding.name for finding in made.findings] == (["text-blocks"] if len(blocks) > 1 else [])


def test_the_oldest_exchanges_go_until_the_rest_just_fits(letters):
    tail = chat("c", "d", "e", "f" * 20)
    length = len(render(tail, letters)[0].input_ids)
    row = replace(tail, turns=(Turn("user", "a"), Turn("assistant", "b"), *tail.turns))
    for limit, turns in ((length, 4), (length - 1, 2)):
        (made,) = prepare([row], letters, DataConfig(max_length=max(limit, 1), too_long="cut_oldest")).examples
        assert made.input_ids == render(replace(row, turns=row.turns[-turns:]), letters)[0].input_ids
    (made,) = prepare(
        [replace(row, turns=(Turn("system", "s"), *row.turns))],
        letters,
        DataConfig(max_length=length, too_long="cut_oldest"),
    ).examples
    assert made.input_ids == render(replace(row, turns=(Turn("system", "s"), *row.turns[-2:])), letters)[0].input_ids


@pytest.mark.parametrize("system", [(), (Turn("system", "s"),)])
def test_of_two_questions_in_a_row_the_older_goes_alone(letters, system):
    turns = (*system, Turn("user", "a" * 60), Turn("user", "c"), Turn("assistant", "d"))
    config = DataConfig(max_length=LIMIT, too_long="cut_oldest")
    (made,) = prepare([Conversation(turns=turns)], letters, config).examples
    assert made.input_ids == render(Conversation(turns=(*system, *turns[-2:])), letters)[0].input_ids


def test_rows_without_turns_have_no_oldest_part_to_leave_out(letters):
    segments = Conversation(segments=(Segment("Q" * 40, False), Segment("A" * 40, True)), source=Source("r", 1))
    tokens = Conversation(tokens=Pretokenised((7,) * 80, (7,) * 80), source=Source("r", 2))
    made = prepare([segments, tokens], letters, DataConfig(max_length=LIMIT, too_long="cut_oldest"))
    assert (made.examples, made.too_long, made.dropped, made.cut, made.refused) == ((), 2, 2, 0, 0)
    cut = prepare([segments, tokens], letters, DataConfig(max_length=LIMIT, too_long="cut_answer"))
    assert [(len(one.input_ids), one.spans) for one in cut.examples] == [(64, ((40, 64),)), (64, ((0, 64),))]


def test_an_answer_alone_that_is_too_long_is_left_out_with_its_questions(letters):
    made = prepare([chat("a" * 40, "b", "c", "d" * 50)], letters, DataConfig(max_length=LIMIT, too_long="cut_oldest"))
    assert (made.examples, made.too_long, made.dropped, made.cut, list(made.lengths)) == ((), 1, 1, 0, [133])


def test_rows_are_counted_whatever_becomes_of_them(letters):
    rows = [
        chat("hi", "ho"),
        chat("hi", "no", label=False, line=2),
        chat("hi", "yes", label=True, line=3),
        chat("hi", line=4),
        replace(chat("hi", "ho", line=5), turns=(Turn("user", "hi"), Turn("assistant", "ho", reasoning="r"))),
        replace(chat("hi", "ho", line=6), turns=(Turn("user", "hi", reasoning="r"), Turn("assistant", "ho"))),
    ]
    made = prepare(rows, letters, DataConfig())
    assert (made.rows, made.refused, made.reasoning_rows, len(made.examples)) == (6, 2, 1, 4)
    assert [(finding.name, finding.examples) for finding in made.findings] == [
        ("nothing-trained", ("r:4: This row has no turn to train.",)), ("bad-example", ("r:2",)),
    ]  # fmt: skip
    assert made.examples[0].text == "" and prepare(rows[:1], letters, DataConfig(), keep_text=True).examples[0].text


def test_without_examples_nothing_can_be_trained(letters):
    with pytest.raises(StudioError) as caught:
        prepare([], letters, DataConfig()).check()
    assert (
        str(caught.value) == "No row is left to train. Look at the findings of the data set, or raise data.max_length."
    )


@pytest.mark.parametrize(
    ("spans", "limit", "cut"),
    [
        (((2, 5), (7, 9)), 9, (9, ((2, 5), (7, 9)))),
        (((2, 5), (7, 9)), 8, (8, ((2, 5), (7, 8)))),
        (((2, 5), (7, 9)), 7, (5, ((2, 5),))),
        (((2, 5), (7, 9)), 3, (3, ((2, 3),))),
        (((2, 5), (7, 9)), 2, None),
        (((0, 5),), 1, None),  # the first token of a row carries no loss
        ((), 5, None),
    ],
)
def test_an_answer_is_cut_behind_the_last_token_that_is_trained(spans, limit, cut):
    example = Example(tuple(range(10)), spans, "text", ((0, 4),), Source("r", 1), "set")
    made = cut_answer(example, limit)
    expected = cut and Example(tuple(range(cut[0])), cut[1], "", (), Source("r", 1), "set")
    assert made == expected


def test_the_last_trained_span_is_what_a_shorter_row_is_known_by():
    assert _last_trained(Example((5, 6, 7, 8), ((0, 1), (2, 4)))) == (7, 8)
    assert _last_trained(Example((5, 6), ())) == ()


def test_counts_add_up():
    one, other = Counts(1, 2, 3, 4, 5, 6, 7, 8), Counts(10, 20, 30, 40, 50, 60, 70, 80)
    one.lengths.append(1)
    other.lengths.append(2)
    one.add(other)
    assert (one.rows, one.too_long, one.dropped, one.cut) == (11, 22, 33, 44)
    assert (one.refused, one.reasoning_rows, one.tokens, one.trained_tokens) == (55, 66, 77, 88)
    assert list(one.lengths) == [1, 2]


def test_a_batch_is_full_of_rows_or_of_characters(monkeypatch):
    from qlora_studio.data.sets import prepare as module

    monkeypatch.setattr(module, "_BATCH_ROWS", 3)
    monkeypatch.setattr(module, "_BATCH_CHARACTERS", 10)
    rows = [Conversation(text="x" * count) for count in (1, 1, 1, 9, 1, 4, 5)]
    assert [[len(row.text) for row in batch] for batch in _batches(rows)] == [[1, 1, 1], [9, 1], [4, 5]]
    turns = [chat("12345", "6789"), chat("1"), chat("2"), chat("12345", "67890")]
    assert [len(batch) for batch in _batches(turns)] == [2, 2]
    assert list(_batches([])) == []


def test_a_watch_is_told_at_the_end_and_now_and_then(monkeypatch):
    from qlora_studio.data.sets import prepare as module

    now, told = [0.0], []
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    progress = Progress(Watch(lambda done, total: told.append((done, total))), 10)
    for rows, at in ((1, 0.1), (2, 0.5), (1, 0.6), (1, 1.0), (1, 1.2), (4, 1.3)):
        now[0] = at
        progress.advance(rows)
    assert told == [(4, 10), (6, 10), (10, 10)]
    with pytest.raises(Stopped):
        Progress(Watch(stopped=lambda: True), 10).advance(1)


def test_rows_that_are_missing_or_too_many_break_the_law():
    check_rows(3, 3)
    with pytest.raises(StudioError, match="3 rows were to be tokenised, and 2 were"):
        check_rows(2, 3)
