"""Small values and their edges: bytes of a plan, labels of an example, words for sizes and times, steps of a run."""

from __future__ import annotations

import pytest

from qlora_studio.core.config import OptimConfig
from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.core.example import Example, origins, token_lengths
from qlora_studio.core.plan import GIB, MIB, LinearShape, MemoryEstimate, MemoryPart, MemoryPlan, PlanSettings
from qlora_studio.core.record import RunRecord
from qlora_studio.core.steps import Step, plan_steps
from qlora_studio.core.sweep import describe_value, parse_sweep
from qlora_studio.core.words import about, clock, gib, gib_of, without_quotes


def plan(**changes):
    estimate = MemoryEstimate(
        parts=(MemoryPart(key="a", label="A", bytes=100), MemoryPart(key="context", label="C", bytes=20))
    )
    usual = MemoryPlan(
        device="cuda", budget_bytes=120, estimate=estimate, micro_batch_tokens=1, checkpointed_layers=0, layers=1,
        adapter_precision="fp32", optimizer="adamw",
    )  # fmt: skip
    return usual.model_copy(update=changes)


@pytest.mark.parametrize(
    ("changes", "spare", "missing"),
    [
        ({}, 0, 0),
        ({"budget_bytes": 119}, -1, 1),
        ({"budget_bytes": 200}, 80, 0),
        ({"host_bytes": 50, "host_budget_bytes": 50}, 0, 0),
        ({"host_bytes": 50, "host_budget_bytes": 43}, 0, 7),
        ({"host_bytes": 50}, 0, 0),
        ({"host_bytes": 50, "host_budget_bytes": 43, "budget_bytes": 110}, -10, 10),
    ],
)
def test_what_is_missing_of_either_memory(changes, spare, missing):
    made = plan(**changes)
    assert (made.spare_bytes, made.missing_bytes, made.fits) == (spare, missing, missing == 0)


def test_bytes_of_a_number_and_numbers_of_a_matrix():
    for compute, adapter, sizes in (("fp32", "fp32", (4, 4)), ("bf16", "fp32", (2, 4)), ("fp16", "bf16", (2, 2))):
        settings = PlanSettings.model_construct(compute=compute, adapter_precision=adapter)
        assert (settings.compute_bytes, settings.adapter_bytes) == sizes
    assert LinearShape(name="q", inputs=3, outputs=5, count=2).weights == 15


@pytest.mark.parametrize(
    ("spans", "trained"),
    [((), 0), (((0, 1),), 0), (((0, 3),), 2), (((1, 3),), 2), (((2, 2),), 0), (((0, 1), (2, 4)), 2), (((0, 2), (2, 4)), 3),
     (((0, 0), (1, 1)), 0), (((0, 1), (1, 2), (3, 4)), 2)],
)  # fmt: skip
def test_the_first_token_carries_no_loss(spans, trained):
    assert Example((7, 8, 9, 10), spans).trained_tokens == trained


def test_examples_in_memory_say_their_lengths_and_sets_themselves():
    rows = [Example((1, 2), (), origin="a"), Example((1,), (), origin="b")]
    assert token_lengths(rows) == [2, 1] and list(origins(rows)) == ["a", "b"]


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 MiB"), (GIB - MIB, "1023 MiB"), (GIB, "1.00 GiB"), (-2 * GIB, "-2.00 GiB"), (1.5 * GIB, "1.50 GiB")],
)
def test_a_size_in_words(size, words):
    assert gib(size) == words


@pytest.mark.parametrize(
    ("part", "whole", "words"),
    [
        (512 * MIB, GIB, "0.5 of 1.0 GiB"),
        (GIB, 512 * MIB, "1.0 of 0.5 GiB"),
        (96 * MIB, 512 * MIB, "96 of 512 MiB"),
        (-GIB, 0, "-1.0 of 0.0 GiB"),
    ],
)
def test_two_sizes_in_the_unit_of_the_larger(part, whole, words):
    assert gib_of(part, whole) == words


@pytest.mark.parametrize(
    ("seconds", "exact", "foretold"),
    [
        (0, "0 s", "under a minute"), (59.4, "59 s", "under a minute"), (59.6, "1 m 00 s", "under a minute"), (60, "1 m 00 s", "1 min"),
        (3599, "59 m 59 s", "60 min"), (3600, "1 h 00 m", "1 h"), (3720, "1 h 02 m", "1 h"), (7800, "2 h 10 m", "2 h 10 min"),
        (48 * 3600 - 600, "47 h 50 m", "47 h 50 min"), (48 * 3600, "48 h 00 m", "2 days"), (80 * 3600, "80 h 00 m", "3 days"),
    ],
)  # fmt: skip
def test_times_in_words(seconds, exact, foretold):
    assert (clock(seconds), about(seconds)) == (exact, foretold)
    assert clock(None) == "\u2013"


@pytest.mark.parametrize(
    ("typed", "path"),
    [(' "/a b" ', "/a b"), ("'/a'", "/a"), ('"', '"'), ('""', ""), ("'a\"", "'a\""), ("/a ", "/a"), ("", "")],
)
def test_quotes_around_a_path_go(typed, path):
    assert without_quotes(typed) == path


def planned(lengths, **changes):
    return plan_steps(lengths, OptimConfig().model_copy(update={"batch_tokens": 10, "seed": 1, **changes}))


def test_steps_are_full_and_go_across_the_ends_of_epochs():
    steps = planned([5] * 6, epochs=1.5)
    assert [(len(step.rows), step.epoch) for step in steps] == [(2, 2 / 6), (2, 4 / 6), (2, 1.0), (2, 8 / 6), (1, 1.5)]
    assert sorted(row for step in steps[:3] for row in step.rows) == [0, 1, 2, 3, 4, 5]
    assert [len(step.rows) for step in planned([5] * 6, epochs=1.5, max_steps=2)] == [2, 2]
    assert [len(step.rows) for step in planned([5] * 6, epochs=2, ended_at=(0.5,))] == [2, 1, 2, 2, 2, 2, 1]
    ended = planned([5] * 6, epochs=2, ended_at=(0.5,), max_steps=4)
    assert [(len(step.rows), step.epoch) for step in ended] == [(2, 2 / 6), (1, 0.5), (2, 5 / 6), (2, 7 / 6)]
    assert [len(step.rows) for step in planned([5] * 6, epochs=2, ended_at=(0.5,), max_steps=2)] == [2, 1]
    assert [len(step.rows) for step in planned([11, 11, 11], epochs=1)] == [1, 1, 1], "a row that is too long is a step"
    assert planned([5], epochs=0.1) == [Step((0,), 1.0)]


def test_rows_are_shuffled_by_seed_and_epoch():
    import random

    for seed in (1, 2):
        expected = []
        for epoch in (0, 1):
            order = list(range(6))
            random.Random(f"{seed}:{epoch}").shuffle(order)
            expected += order
        assert [row for step in planned([5] * 6, epochs=2, seed=seed) for row in step.rows] == expected


def test_a_sweep_as_it_is_written():
    values = parse_sweep(["lora.rank = 8, 16,8", "optim.learning_rate=1e-4,auto", "data.sources=a:3+b, c"])
    assert values == {
        "lora.rank": [8, 16], "optim.learning_rate": [1e-4, "auto"],
        "data.sources": [[{"name": "a", "weight": 3.0}, {"name": "b", "weight": 1.0}], [{"name": "c", "weight": 1.0}]],
    }  # fmt: skip
    assert [describe_value(value) for value in (values["data.sources"][0], 8, "x", [1], [{"name": "d"}])] == [
        "a:3+b:1",
        "8",
        "x",
        "[1]",
        "d:1",
    ]


@pytest.mark.parametrize(
    "line", ["lora.rank", "rank=8", "lora.rank=", "lora.rank= , ", "=8", "data.sources=a:0", "data.sources=a:inf", "data.sources=a:x", "data.sources=:1", "data.sources=a:-1"]
)  # fmt: skip
def test_what_is_no_sweep_is_refused(line):
    with pytest.raises(StudioError, match=r"is no (sweep|mixture of sets)\."):
        parse_sweep([line])


def test_a_setting_is_swept_once():
    with pytest.raises(StudioError, match=r"^'lora\.rank' is named twice\."):
        parse_sweep(["lora.rank=8", "lora.rank =9"])


def test_a_record_is_read_back_or_refused_in_words():
    from qlora_studio.core.config import TrainConfig

    record = RunRecord(name="r", config=TrainConfig(), losses=((1, 2.0),))
    assert RunRecord.parse(record.model_dump_json(), "f") == record
    cases = {
        "{": ("This is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1).", ""),
        "[]": ("This is not the record of a run: input should be a valid dictionary or instance of runrecord.", ""),
        '{"config": {}}': ("This is not the record of a run: field required.", "name"),
        '{"name": "r"}': ("This is not the record of a run: field required.", "config"),
        '{"name": "r", "config": {}, "schema_version": 2}': (
            "This record was written by another version (schema 2).",
            "",
        ),
        '{"name": "r", "config": {"lora": {"rank": 0}}}': (
            "0 is not allowed: should be greater than or equal to 1.",
            "lora.rank",
        ),
    }
    for text, (message, field) in cases.items():
        with pytest.raises(StudioError) as caught:
            RunRecord.parse(text, "f")
        problem = caught.value.problems[0]
        assert isinstance(problem, Problem) and (problem.message, problem.where, problem.field) == (message, "f", field)
