"""What a mixture takes of examples made here, when a watch is told, and how rows are put into batches."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from qlora_studio.core.config import DataConfig, DataSource
from qlora_studio.core.conversation import Conversation, Turn
from qlora_studio.core.errors import LawBroken
from qlora_studio.core.example import Example
from qlora_studio.data.sets import prepare
from qlora_studio.data.sets.mix import Taken
from qlora_studio.data.sets.prepare import Progress, RowsRequest, Stopped, Watch, check_rows, count_tokens, mixture


def example(origin, tokens, trained=1):
    return Example(tuple(range(tokens)), ((tokens - trained, tokens),), origin=origin)


A, B = [example("a", 10) for _ in range(4)], [example("b", 5) for _ in range(4)]
TURNS = [A[0], B[0], A[1], B[1], A[2], B[2], A[3], B[3]]


def mixed(examples, *sources, split="train", **more):
    config = DataConfig(sources=tuple(DataSource(**source) for source in sources), **more)
    return mixture(RowsRequest(Path("none"), None, config, 7), split, examples)


def test_a_mixture_takes_the_numbers_of_each_sets_own_examples_set_by_set():
    order, taken = mixed(TURNS, {"name": "b"}, {"name": "a"})
    assert order == [1, 3, 5, 7, 0, 2, 4, 6]
    assert taken == (Taken("b", 4, 4, 4, 0.5, 1.0), Taken("a", 4, 4, 4, 0.5, 1.0))


def test_weights_count_rows_or_tokens():
    order, taken = mixed(TURNS, {"name": "a"}, {"name": "b"}, mix_by="tokens")
    assert [(one.rows, one.size, one.share) for one in taken] == [(2, 20, 0.5), (4, 20, 0.5)]
    assert order[2:] == [1, 3, 5, 7] and set(order[:2]) < {0, 2, 4, 6}
    order, taken = mixed(TURNS, {"name": "a", "weight": 2}, {"name": "b"}, mix_by="rows")
    assert [(one.rows, one.size, one.share) for one in taken] == [(4, 4, 4 / 6), (2, 2, 2 / 6)]


def test_a_set_is_repeated_as_often_as_it_may_be():
    order, taken = mixed(TURNS[:3], {"name": "b", "max_repeats": 2}, {"name": "a"})
    assert order == [1, 1, 0, 2]
    assert taken == (Taken("b", 2, 1, 2, 0.5, 2.0), Taken("a", 2, 2, 2, 0.5, 1.0))


def test_a_set_alone_and_the_evaluation_side_are_no_mixture():
    assert mixed(A, {"name": "a"}) == ([], ())
    assert mixed(A, {"name": "a", "max_repeats": 3}) == ([], ())
    assert mixed(TURNS, {"name": "a"}, {"name": "b"}, split="eval") == ([], ())


def test_tokens_are_counted_in_all_and_as_trained():
    assert count_tokens([]) == (0, 0)
    assert count_tokens([example("a", 10, 3), example("a", 5, 1)]) == (15, 4)
    assert count_tokens([Example((1, 2, 3), ((0, 3),))]) == (3, 2), "the first token has nothing before it"


@pytest.mark.parametrize("done", [6, 8])
def test_rows_are_conserved(done):
    check_rows(7, 7)
    with pytest.raises(LawBroken, match=rf"^7 rows were to be tokenised, and {done} were\. "):
        check_rows(done, 7)


def test_a_watch_is_told_every_half_second_and_at_the_end(monkeypatch):
    clock, said = [100.0], []
    monkeypatch.setattr(prepare, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    progress = Progress(Watch(lambda done, total: said.append((done, total))), 10)
    for seconds, rows in ((0.25, 2), (0.25, 1), (0.125, 1), (0.5, 1), (0.0, 1), (0.125, 2), (0.5, 1), (0.0, 1)):
        clock[0] += seconds
        progress.advance(rows)
    # after 0.625 s, after 0.625 s more, and at the end
    assert said == [(4, 10), (8, 10), (10, 10)]


def test_a_watch_that_asks_for_a_stop_is_told_nothing_more():
    said = []
    progress = Progress(Watch(lambda *values: said.append(values), lambda: True), 3)
    with pytest.raises(Stopped):
        progress.advance(3)
    assert said == []


def test_batches_end_at_a_number_of_rows_or_with_the_row_that_fills_them(monkeypatch):
    monkeypatch.setattr(prepare, "_BATCH_ROWS", 3)
    monkeypatch.setattr(prepare, "_BATCH_CHARACTERS", 10)

    def sizes(*lengths):
        rows = [
            Conversation(text="x" * length)
            if at % 2
            else Conversation(turns=(Turn("user", "x" * (length - 1)), Turn("assistant", "x")))
            for at, length in enumerate(lengths)
        ]
        batches = list(prepare._batches(rows))
        assert [row for batch in batches for row in batch] == rows
        return [len(batch) for batch in batches]

    assert sizes() == []
    assert sizes(1, 1, 1, 1, 1, 1) == [3, 3]
    assert sizes(1, 1, 1, 1) == [3, 1]
    assert sizes(5, 4, 1, 1) == [3, 1]
    assert sizes(5, 5, 1, 1) == [2, 2]
    assert sizes(9, 1, 9, 1, 10, 2) == [2, 2, 1, 1]
