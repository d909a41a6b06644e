"""A Modelfile as Ollama reads it: its rules, written down from parser.go, decide."""

from __future__ import annotations

import pytest

from qlora_studio.core.chat import Sampling
from qlora_studio.core.errors import StudioError
from qlora_studio.engine.modelfile import modelfile, quote
from tests.modelfile_reader import read_modelfile


def test_it_says_where_the_weights_are_and_where_answers_end_and_no_more():
    text = modelfile("my run.Q4_K_M.gguf", ["<|im_end|>", "<|im_end|>", "</s>", " "], Sampling(temperature=0.7), 2048)
    assert read_modelfile(text) == [
        ("from", "./my run.Q4_K_M.gguf"),
        ("stop", "<|im_end|>"),
        ("stop", "</s>"),
        ("temperature", "0.7"),
        ("num_ctx", "2048"),
    ]
    assert "TEMPLATE" not in text and "ADAPTER" not in text


@pytest.mark.parametrize("value", ["plain", 'with "quotes"', "two\nlines", "# no comment", " spaces "])
def test_a_value_comes_back_as_it_was(value):
    assert read_modelfile(f"FROM x\nPARAMETER stop {quote(value)}\n")[1] == ("stop", value)


def test_a_value_that_the_syntax_cannot_hold_is_refused():
    with pytest.raises(StudioError, match="three quotes in a row"):
        quote('a"""b')


@pytest.mark.parametrize("bad", ["PARAMETER stop x\n", 'FROM x\nPARAMETER stop """a\n', "FROM x\nADAPTED y\n"])
def test_the_reader_refuses_what_ollama_refuses(bad):
    with pytest.raises(ValueError):
        read_modelfile(bad)


@pytest.mark.parametrize(
    ("value", "written"),
    [("plain", '"plain"'), ("", '""'), ('a "b"', '"""a "b""""'), ("a\nb", '"""a\nb"""'), ("'", '"\'"')],
)
def test_a_value_is_quoted_thrice_only_where_it_must_be(value, written):
    assert quote(value) == written
