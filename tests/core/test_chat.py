"""What is asked and answered in a chat, as far as nobody says otherwise, and the limits of how words are chosen."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from qlora_studio.core.chat import ChatPiece, ChatRequest, ChatTurn, Sampling, StopAnswer
from tests.core.frozen import stays


def test_without_a_word_the_likeliest_words_of_the_tuned_side_are_asked_for():
    assert Sampling().model_dump() == {
        "temperature": 0.0, "top_p": 0.95, "top_k": 0, "repetition_penalty": 1.0, "max_new_tokens": 256, "seed": 42,
    }  # fmt: skip
    request = ChatRequest(turns=())
    assert (request.kind, request.side, request.sampling) == ("ask", "tuned", Sampling())


def test_a_piece_is_not_the_last_until_it_says_so():
    assert ChatPiece().model_dump() == {
        "text": "", "done": False, "tokens": 0, "tokens_per_second": 0.0, "prompt": "", "error": "", "hint": "",
    }  # fmt: skip


LIMITS = {
    "temperature": ((0, 5), (-0.1, 5.1)),
    "top_p": ((0.01, 1), (0, 1.1)),
    "top_k": ((0, 1000), (-1, 1001)),
    "repetition_penalty": ((0.5, 2), (0.4, 2.1)),
    "max_new_tokens": ((1, 32_768), (0, 32_769)),
    "seed": ((0, 4_294_967_295), (-1, 4_294_967_296)),
}


@pytest.mark.parametrize("name", LIMITS)
def test_how_words_are_chosen_has_limits(name):
    taken, refused = LIMITS[name]
    for value in taken:
        assert getattr(Sampling(**{name: value}), name) == value
    for value in refused:
        with pytest.raises(ValidationError):
            Sampling(**{name: value})


def test_what_was_said_stays():
    turn = ChatTurn(role="user", content="Hi")
    assert all(map(stays, (Sampling(), turn, ChatRequest(turns=(turn,)), StopAnswer(), ChatPiece())))
