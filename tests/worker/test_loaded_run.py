"""A run that is talked to: what of an answer is shown when, by which side, and which weights and template it is made of."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from qlora_studio.core.chat import Sampling
from qlora_studio.core.conversation import Turn
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import EvaluateRequest
from qlora_studio.runs.folder import JobFolder, read_json, write_json
from qlora_studio.worker import loaded_run
from qlora_studio.worker.loaded_run import LoadedRun

BYTES = "Hé!".encode()
"""What the model says, a token a byte: the second character is whole only after its second byte."""


class Model:
    """Says these tokens; which side was chosen while it did is written down."""

    def __init__(self, said=BYTES):
        self.said, self.heard = said, []

    def eval(self):
        self.heard.append("eval")


@pytest.fixture
def talk(monkeypatch):
    @contextmanager
    def choose_side(model, side):
        model.heard.append(side)
        yield
        model.heard.append(f"{side} no more")

    def generate(model, prompt, stops, sampling):
        model.heard.append((prompt, stops, sampling))
        yield from model.said

    monkeypatch.setattr(loaded_run, "choose_side", choose_side)
    monkeypatch.setattr(loaded_run, "generate", generate)
    monkeypatch.setattr(loaded_run, "stop_ids", lambda tokenizer: {0})
    monkeypatch.setattr(loaded_run, "prompt_ids", lambda turns, tokenizer, options: [turns[-1].content, options])
    tokenizer = SimpleNamespace(decode=lambda ids: bytes(ids).decode(errors="replace"))
    return lambda model: LoadedRun(None, tokenizer, model, None, "options")


def test_half_a_character_is_held_back_until_it_is_whole(talk):
    model, sampling = Model(), Sampling(max_new_tokens=9)
    assert list(talk(model).answer([Turn("user", "Hi")], "tuned", sampling)) == ["H", "Hé", "Hé!"]
    assert model.heard == ["eval", "tuned", (["Hi", "options"], {0}, sampling), "tuned no more"]


def test_an_answer_that_ends_in_half_a_character_shows_that_at_its_end(talk):
    assert list(talk(Model(BYTES[:2])).answer([Turn("user", "Hi")], "base", Sampling())) == ["H", "H\ufffd"]
    assert list(talk(Model(b"")).answer([Turn("user", "Hi")], "base", Sampling())) == []


def test_an_answer_ends_where_it_is_stopped_and_its_side_is_left(talk):
    model, asked = Model(), iter([False, True])
    assert list(talk(model).answer([Turn("user", "Hi")], "base", Sampling(), lambda: next(asked))) == ["H"]
    assert model.heard[-1] == "base no more" and next(asked, None) is None


def test_a_whole_answer_is_its_last_state_and_nothing_where_nothing_is_said(talk):
    assert talk(Model()).whole_answer("Hi", "base", Sampling()) == "Hé!"
    assert talk(Model(b"")).whole_answer("Hi", "base", Sampling()) == ""


def opened(trained, checkpoint=""):
    run = JobFolder(trained.home.runs / "one")
    done = trained.context(EvaluateRequest(run=run.path), "look")
    return done, run, lambda: loaded_run.open_run(done.context, run, checkpoint)


@pytest.mark.parametrize("thinks", [True, False, None])
def test_a_run_is_put_its_prompts_as_in_its_training(trained, thinks):
    done, run, open_it = opened(trained)
    record = read_json(run.path / "fingerprint.json")
    if thinks is None:
        (run.path / "fingerprint.json").unlink()
    else:
        write_json(run.path / "fingerprint.json", record | {"thinks": thinks})
    live = open_it()
    assert live.options.thinking == bool(thinks) and live.base.label == "tiny" and not live.model.training
    hashing = [] if thinks is None else ["hashing the base's weights"]
    assert done.phases() == [*hashing, "loading the model in 4 bits"]
    assert str(live.device.dtype) == "torch.float32", "as its plan says"


def test_the_template_beside_the_adapter_is_the_one_it_is_asked_with(trained):
    _, run, open_it = opened(trained)
    (run.path / "fingerprint.json").unlink()
    base = trained.home.models / "tiny"
    for path in base.glob("tokenizer*"):
        shutil.copyfile(path, run.adapter / path.name)
    values = json.loads((run.adapter / "tokenizer_config.json").read_text())
    values["chat_template"] = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    (run.adapter / "tokenizer_config.json").write_text(json.dumps(values))
    assert open_it().tokenizer.template == values["chat_template"]


def test_damaged_weights_are_not_talked_to(trained):
    _, run, open_it = opened(trained, "step-2")
    (run.path / "checkpoints" / "step-000002" / "state.json").write_text("{")
    with pytest.raises(StudioError, match=r"state\.json") as refused:
        open_it()
    assert refused.value.hint == "Choose a checkpoint with --checkpoint, or train again."
