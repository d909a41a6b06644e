"""Sample answers change nothing of the run, come at the base and at each evaluation, and give way where memory is short."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from qlora_studio.core import events as ev
from qlora_studio.core.chat import Sampling
from qlora_studio.core.config import LoraSettings
from qlora_studio.engine import loop
from qlora_studio.engine.generate import generate
from qlora_studio.engine.load import attach_adapter, load_base
from tests.engine.conftest import FP32
from tests.engine.test_loop import Recorder, setup


def run(tiny_folder, folder, answers):
    """A run with dropout whose model is asked by `answers`, which is given it."""
    model = attach_adapter(load_base(tiny_folder, FP32), LoraSettings(rank=4, dropout=0.2), torch.float32, seed=1)
    recorder = Recorder()
    made = setup(model, folder, lora__dropout=0.2, evaluation__every_steps=4)
    loop.train(dataclasses.replace(made, answers=lambda: answers(model)), recorder.emit, recorder.find_request)
    return recorder


def ask(model):
    """A real answer, sampled with numbers from the global generator as well."""
    assert not model.training
    torch.rand(3)
    ids = generate(model, [5, 6, 7], (), Sampling(max_new_tokens=4))
    yield "first", " ".join(map(str, ids))
    yield "second", "same"


@pytest.mark.slow
def test_a_run_that_is_asked_has_the_curve_of_one_that_is_not(tiny_folder, tmp_path):
    sampled = run(tiny_folder, tmp_path / "sampled", ask)
    silent = run(tiny_folder, tmp_path / "silent", lambda model: ())
    assert sampled.losses == silent.losses and silent.of(ev.SampleWritten) == []
    shown = [(one.step, one.side, one.prompt) for one in sampled.of(ev.SampleWritten)]
    assert shown == [
        (step, side, prompt)
        for step, side in ((0, "base"), (4, "tuned"), (8, "tuned"))
        for prompt in ("first", "second")
    ]
    answers = [one.answer for one in sampled.of(ev.SampleWritten) if one.prompt == "first"]
    assert all(len(answer.split()) == 4 for answer in answers) and answers[0] != answers[-1], "it has learned"


def test_memory_that_does_not_suffice_costs_a_word_and_no_step(tiny_folder, tmp_path):
    def too_large(model):
        yield "first", "fits"
        raise torch.OutOfMemoryError("CUDA out of memory.")

    recorder = run(tiny_folder, tmp_path / "run", too_large)
    assert len(recorder.losses) == 8 and len(recorder.of(ev.SampleWritten)) == 3
    assert recorder.of(ev.Noted)[0].text == "Step 0: there was not enough memory for the sample answers."
