"""Characters become tokens: spans that touch, gaps between tokens, and what lies behind the last one."""

import pytest

from qlora_studio.data.render.encode import _joined, _token_at


class Encoding:
    """Tokens that hold these stretches of characters."""

    def __init__(self, *stretches):
        self.stretches = stretches
        self.ids = list(range(100, 100 + len(stretches)))

    def char_to_token(self, position):
        return next((i for i, one in enumerate(self.stretches) if one and one[0] <= position < one[1]), None)

    def token_to_chars(self, index):
        return self.stretches[index]


@pytest.mark.parametrize(
    ("spans", "joined"),
    [
        ([], []),
        ([(1, 2), (2, 4)], [(1, 4)]),
        ([(1, 2), (3, 4)], [(1, 2), (3, 4)]),
        ([(1, 9), (3, 4)], [(1, 9)]),
        ([(1, 3), (2, 5), (5, 5), (6, 6), (7, 8)], [(1, 5), (7, 8)]),
        ([(4, 3), (2, 2)], []),
        ([(0, 1), (4, 3), (1, 2)], [(0, 2)]),
    ],
)
def test_spans_that_touch_become_one_and_empty_ones_go(spans, joined):
    assert _joined(spans) == joined


def test_a_character_between_two_tokens_belongs_to_the_next():
    encoding = Encoding((0, 2), (4, 6), (8, 9))
    assert [_token_at(position, encoding) for position in range(11)] == [0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3]


def test_without_tokens_everything_is_at_the_beginning():
    assert [_token_at(position, Encoding()) for position in (0, 5)] == [0, 0]


def test_behind_a_last_token_without_characters_nothing_is_looked_for():
    assert _token_at(3, Encoding((0, 2), None)) == 2
