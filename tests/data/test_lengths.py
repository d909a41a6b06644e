"""Lengths beside a limit: what is over it, and what packing saves."""

from qlora_studio.data.lengths import measure_lengths


def test_a_limit_is_measured():
    report = measure_lengths([10, 20, 30, 40, 200], limit=50, bins=4)
    assert (report.rows, report.shortest, report.median, report.longest) == (5, 10, 30, 200)
    assert (report.over, report.tokens_over) == (1, 150)
    assert (report.padded_tokens, report.packed_tokens, report.padding_avoided) == (200, 100, 0.5)
    assert report.bins == ((0, 51, 4), (51, 102, 0), (102, 153, 0), (153, 204, 1))


def test_no_rows_are_no_error():
    assert measure_lengths([], limit=50).rows == 0
    assert measure_lengths([7], limit=50).p95 == 7
