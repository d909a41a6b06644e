"""Mixtures keep the shares that were asked for, repeat only what may be repeated and depend on the seed alone."""

from qlora_studio.data.sets.mix import Part, Taken, mix


def test_one_part_is_taken_whole():
    assert mix([Part("a", 3.0, [1, 1])], 1) == ([[0, 1]], (Taken("a", 2, 2, 2, 1.0, 1.0),))


def test_shares_by_rows():
    parts = [Part("task", 0.9, [1] * 90), Part("general", 0.1, [1] * 1000)]
    (task, general), taken = mix(parts, 7)
    assert [(one.rows, one.of_rows, one.share, one.epochs) for one in taken] == [
        (90, 90, 0.9, 1.0),
        (10, 1000, 0.1, 0.01),
    ]
    assert task == list(range(90))
    assert general == sorted(set(general))
    assert mix(parts, 7)[0] == [task, general]
    assert mix(parts, 8)[0] != [task, general]


def test_shares_by_tokens():
    (long, short), taken = mix([Part("long", 1.0, [50] * 100), Part("short", 1.0, [5] * 100)], 3)
    assert [(one.rows, one.size) for one in taken] == [(10, 500), (100, 500)]
    assert (len(long), len(short)) == (10, 100)


def test_an_empty_part_takes_nothing_from_the_others():
    chosen, taken = mix([Part("a", 1.0, [1, 1]), Part("none", 1.0, [])], 3)
    assert chosen == [[0, 1], []]
    assert taken[1] == Taken("none", 0, 0, 0, 0.0, 0.0)


def test_a_small_part_is_repeated_only_as_often_as_it_may_be():
    general = Part("general", 1.0, [1] * 100)
    for repeats, rows in ((1, 10), (3, 30), (20, 100)):
        chosen, taken = mix([Part("small", 1.0, [1] * 10, repeats), general], 3)
        assert [one.rows for one in taken] == [rows, rows]
        assert [one.share for one in taken] == [0.5, 0.5]
        assert (taken[0].epochs, taken[1].epochs) == (rows / 10, rows / 100)
        assert {chosen[0].count(row) for row in range(10)} == {rows // 10}


def test_what_is_left_of_a_pass_is_chosen_by_the_seed():
    chosen, taken = mix([Part("small", 1.0, [1] * 10, 5), Part("general", 2.0, [1] * 50)], 3)
    assert [one.rows for one in taken] == [25, 50]
    assert {chosen[0].count(row) for row in range(10)} == {2, 3}
