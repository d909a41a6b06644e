"""Mixtures keep the shares that were asked for, repeat nothing and depend on the seed alone."""

from qlora_studio.data.sets.mix import Part, Taken, mix


def test_one_part_is_taken_whole():
    assert mix([Part("a", 3.0, ["x", "y"])], len, 1) == (["x", "y"], (Taken("a", 2, 2, 2, 1.0),))


def test_shares_by_rows():
    parts = [Part("task", 0.9, list(range(90))), Part("general", 0.1, list(range(1000, 2000)))]
    mixed, taken = mix(parts, lambda item: 1, 7)
    assert [(one.rows, one.of_rows, one.share) for one in taken] == [(90, 90, 0.9), (10, 1000, 0.1)]
    assert mixed[:90] == list(range(90))
    assert mixed[90:] == sorted(set(mixed[90:]))
    assert mix(parts, lambda item: 1, 7)[0] == mixed
    assert mix(parts, lambda item: 1, 8)[0] != mixed


def test_shares_by_tokens():
    long, short = ["x" * 50] * 100, ["y" * 5] * 100
    mixed, taken = mix([Part("long", 1.0, long), Part("short", 1.0, short)], len, 3)
    assert [(one.rows, one.size) for one in taken] == [(10, 500), (100, 500)]
    assert len(mixed) == 110


def test_an_empty_part_takes_nothing_from_the_others():
    mixed, taken = mix([Part("a", 1.0, [1, 2]), Part("none", 1.0, [])], lambda item: 1, 3)
    assert mixed == [1, 2]
    assert taken[1] == Taken("none", 0, 0, 0, 0.0)
