"""An artefact beside the chat, from distributions written by hand: what agrees, where answers end, which layer is off."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from qlora_studio.core import events as ev
from qlora_studio.data.render.prompt import RenderOptions
from qlora_studio.engine.compare import Probe
from qlora_studio.engine.exporters.comparison import (
    Answer,
    ArtefactAnswers,
    ChatRecord,
    ask_layers,
    ask_model,
    compare,
    compare_with_chat,
    look_at_layers,
)
from qlora_studio.engine.strength import Strength

VOCAB, STOP = 6, 5
FIRST, SECOND = Answer("one", (1, 2), (3, 4), True), Answer("two", (1,), (2, 3), False)
ROW = Probe((0, 1, 2), (0, 1))
LIKE = ev.Checked(what="merged", precision="Q8_0")


def likeliest(*tokens: int) -> torch.Tensor:
    """Distributions (positions, vocab) of which half falls on these tokens, and the rest on the others alike."""
    rows = torch.full((len(tokens), VOCAB), 0.5 / (VOCAB - 1))
    rows[range(len(tokens)), list(tokens)] = 0.5
    return rows.log()


CHAT = likeliest(3, 4, STOP, 2, 3, 1, 2)
"""The tokens of the first answer and its end, those of the second, and those of the row."""


@pytest.fixture
def record() -> ChatRecord:
    return ChatRecord((FIRST, SECOND), (ROW,), CHAT, 1.5, RenderOptions(), "template", (STOP,))


def test_a_record_s_positions_are_those_of_its_answers_and_rows(record):
    assert [len(probe.positions) for probe in record.probes] == [3, 2, 2]
    assert record.chat_loss == pytest.approx(math.log(2)) == record.loss(CHAT)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (CHAT, {"same_top1": 1.0, "kl": 0.0, "stops_kept": 1, "loss": math.log(2)}),
        (likeliest(3, 4, 0, 2, 3, 1, 2), {"same_top1": 6 / 7, "stops_kept": 0, "loss": math.log(2)}),
        (likeliest(0, 0, STOP, 0, 0, 1, 2), {"same_top1": 3 / 7, "stops_kept": 1, "loss": math.log(2)}),
        (likeliest(3, 4, STOP, 2, 3, 0, 0), {"same_top1": 5 / 7, "stops_kept": 1, "loss": math.log(10)}),
    ],
)
def test_distributions_are_compared_position_by_position(record, found, expected):
    checked = compare(record, found, LIKE)
    fixed = {"positions": 7, "stops": 1, "base_loss": 1.5, "what": "merged", "precision": "Q8_0"}
    values = checked.model_dump()
    assert {name: values[name] for name in fixed} == fixed
    assert values["chat_loss"] == pytest.approx(math.log(2))
    assert {name: values[name] for name in expected} == {
        name: pytest.approx(value, abs=1e-6) for name, value in expected.items()
    }
    off = 7 * (1 - expected["same_top1"])  # each such position: half a nat's share moves to another token
    assert values["kl"] == pytest.approx(off / 7 * (0.5 - 0.1) * math.log(5), abs=1e-5)


class Words:
    """A tokenizer that only decodes."""

    def decode(self, ids):
        return " ".join(map(str, ids))


def layers(found, told):
    def log_probabilities(probes, advanced):
        told.append(probes)
        advanced(3, 4)
        return found

    return SimpleNamespace(log_probabilities=log_probabilities)


@pytest.mark.parametrize(
    ("found", "answers"),
    [
        (CHAT, ("3 4", "2 3")),
        (likeliest(3, 4, 0, 2, 3, 1, 2), (None, "2 3")),
        (likeliest(3, 0, STOP, 2, 3, 1, 2), (None, "2 3")),
        (likeliest(3, 4, STOP, 2, 0, 0, 0), ("3 4", None)),
        (likeliest(3, 4, STOP, 2, 3, 0, 0), ("3 4", "2 3")),
    ],
    ids=["the same", "another end", "another word", "another last word", "only the row differs"],
)
def test_an_answer_is_the_chat_s_where_each_token_is_the_likeliest(record, found, answers):
    told, heard = [], []
    asked = ask_layers(layers(found, told), Words(), record, heard.append)
    assert (asked.answers, asked.identical) == (answers, sum(one is not None for one in answers))
    assert asked.log_probabilities is found and told == [record.probes]
    assert heard == [ev.Advanced(done=3, total=4, unit="layers")]


def test_a_model_in_memory_writes_its_answers_itself(record, monkeypatch):
    monkeypatch.setattr(
        "qlora_studio.engine.exporters.comparison.log_probabilities", lambda model, probes: (model, probes)
    )
    told = {"one": (3, 4), "two": (2, 9)}
    artefact = SimpleNamespace(
        model="m", tokenizer=Words(), answer=lambda text: Answer(text, (), told[text], True)
    )  # fmt: skip
    assert ask_model(artefact, record) == ArtefactAnswers(("3 4", "2 9"), 1, ("m", record.probes))


def test_answers_and_numbers_are_said_in_order(record):
    heard = []
    compare_with_chat(record, ArtefactAnswers((None, "2 3"), 1, CHAT), LIKE, heard.append)
    assert heard == [
        ev.SampleWritten(step=0, prompt="two", answer="2 3", side="merged"),
        compare(record, CHAT, LIKE.model_copy(update={"identical_answers": 1, "answers": 2})),
    ]
    assert (heard[1].identical_answers, heard[1].answers) == (1, 2)


def test_the_layer_that_is_furthest_off_is_named():
    fine, low, high = Strength("fine", 1.05, 1.0, 0.0), Strength("low", 0.5, 1.0, 0.0), Strength("high", 1.8, 1.1, 0.0)
    assert look_at_layers(LIKE, []) == LIKE
    assert look_at_layers(LIKE, [fine]) == LIKE.model_copy(update={"layers": 1})
    expected = {"layers": 3, "layers_off": 2, "layer_off": "high", "share_off": 1.8, "share_wanted": 1.1}
    assert look_at_layers(LIKE, [low, fine, high]) == LIKE.model_copy(update=expected)
