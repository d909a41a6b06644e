"""What a mixture takes of examples made here, and how many tokens they are."""

from __future__ import annotations

from pathlib import Path

from qlora_studio.core.config import DataConfig, DataSource, OptimConfig
from qlora_studio.core.example import Example
from qlora_studio.data.sets.mix import Taken
from qlora_studio.data.sets.prepare import RowsRequest, count_tokens, mixture


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


def test_rows_are_asked_for_with_the_seed_of_a_run_and_in_one_process_unless_said_otherwise():
    request = RowsRequest(Path("none"), None, DataConfig())
    assert (request.seed, request.processes) == (OptimConfig().seed, 1)
