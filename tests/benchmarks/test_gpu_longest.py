"""The longest row is found in few tries where the plan is right, and found where it is not."""

import pytest

from benchmarks.gpu_longest import search_longest


@pytest.mark.parametrize(
    ("holds", "planned", "most", "found", "tries"),
    [
        (1000, 1000, 10_000, 1000, 2),
        (1300, 1000, 10_000, 1248, 6),
        (900, 1000, 10_000, 876, 4),
        (0, 1000, 10_000, 0, 8),
        (5000, 1000, 1000, 1000, 1),
        (5000, 1000, 1100, 1062, 2),
    ],
    ids=["as planned", "longer", "shorter", "nothing", "at the model's end", "up to the model's end"],
)
def test_the_longest_row_is_found_to_a_sixteenth(holds, planned, most, found, tries):
    tried, reported = [], []

    def fits(tokens):
        tried.append(tokens)
        return tokens <= holds

    assert search_longest(fits, planned, most, reported.append) == found
    assert (len(tried), reported[-1:]) == (tries, [found] if found else []) and max(tried) <= most
    assert min(holds, most) - found <= planned // 16 + 1
