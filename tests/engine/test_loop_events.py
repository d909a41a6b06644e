"""What a run says: every event of a short one, with every number that follows from its rows, and every request's answer."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from qlora_studio import faults
from qlora_studio.core import events as ev
from qlora_studio.core.config import LoraSettings
from qlora_studio.core.errors import StudioError
from qlora_studio.core.example import Example
from qlora_studio.core.plan import MemoryEstimate, MemoryPart
from qlora_studio.core.steps import plan_steps
from qlora_studio.engine import loop
from qlora_studio.engine.accelerator.cpu import CpuAccelerator
from qlora_studio.engine.accelerator.protocol import Peak
from qlora_studio.engine.load import attach_adapter, load_base
from qlora_studio.engine.updates import Updates
from tests.engine.conftest import FP32, make_examples, make_plan
from tests.engine.test_loop import Recorder, setup

HELD_OUT = make_examples(2, seed=8)
OF_HELD_OUT = sum(example.trained_tokens for example in HELD_OUT)
STATES, LAYER_BYTES = 4096, 512


class Meter(CpuAccelerator):
    """A processor whose memory grows by one byte every time it is read, and which counts what it gives back."""

    release_every_steps = 3

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.read = 0

    def peak(self) -> Peak:
        self.read += 1
        return Peak(0, 1000 + self.read)

    def reset_peak(self) -> None:
        self.calls.append("reset")

    def release(self) -> None:
        self.calls.append("release")


@pytest.fixture
def clock(monkeypatch):
    """Seconds that only updates move: two each."""
    now, apply = [100.0], Updates.apply

    def two_seconds(self) -> None:
        now[0] += 2
        apply(self)

    monkeypatch.setattr(Updates, "apply", two_seconds)
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    return now


def metered(model, folder, **changes):
    parts = (
        MemoryPart(key="layers", label="Layers", bytes=LAYER_BYTES),
        MemoryPart(key="optimizer", label="Optimizer", bytes=STATES),
    )
    plan = make_plan(100).model_copy(update={"estimate": MemoryEstimate(parts=parts)})
    made = setup(model, folder, plan, held_out=HELD_OUT, optim__epochs=1, evaluation__every_steps=3, **changes)
    return dataclasses.replace(made, accelerator=Meter(), answers=lambda: [("Why?", "So.")])


def test_every_event_of_a_run_has_the_numbers_that_follow_from_its_rows(tiny_adapter_model, tmp_path, clock):
    made, recorder = metered(tiny_adapter_model, tmp_path / "run", saving__adapter="last"), Recorder()
    outcome = loop.train(made, recorder.emit, recorder.find_request)
    lengths = [len(row.input_ids) for row in made.train]
    steps = plan_steps(lengths, made.config.optim)
    assert len(steps) == 4 and outcome.total_steps == 4 == outcome.step
    probe, logged = recorder.of(ev.ProbeMeasured)[0], recorder.of(ev.StepLogged)
    evaluated = recorder.of(ev.EvaluationLogged)

    def step(number: int) -> ev.StepLogged:
        rows, found = steps[number - 1].rows, logged[number - 1]
        tokens = sum(lengths[row] for row in rows)
        return ev.StepLogged(
            step=number, total_steps=4, epoch=sum(len(one.rows) for one in steps[:number]) / 12, loss=found.loss,
            learning_rate=found.learning_rate, grad_norm=found.grad_norm, tokens=tokens,
            trained_tokens=sum(made.train[row].trained_tokens for row in rows), tokens_per_second=tokens / 2,
            peak_bytes=1001 + number, seconds_left=2.0 * (4 - number), metrics=found.metrics,
        )  # fmt: skip

    def evaluation(place: int, number: int, *, adapter: bool) -> list[ev.Event]:
        loss = evaluated[place].loss
        return [
            ev.PhaseEntered(phase="measuring the held-out loss"),
            ev.Advanced(done=2, total=2, unit="rows"),
            ev.EvaluationLogged(step=number, loss=loss, tokens=OF_HELD_OUT, rows=2, adapter=adapter),
        ]

    def sample(number: int, side: str) -> ev.SampleWritten:
        return ev.SampleWritten(step=number, prompt="Why?", answer="So.", side=side)

    training = ev.PhaseEntered(phase="training")
    assert recorder.events == [
        ev.PhaseEntered(phase="trying the largest step"),
        ev.ProbeMeasured(
            predicted_bytes=LAYER_BYTES + STATES, measured_bytes=1001 + STATES, tokens=probe.tokens,
            row_tokens=probe.row_tokens, trained_tokens=probe.trained_tokens, padded=False,
        ),
        *evaluation(0, 0, adapter=False),
        sample(0, "base"),
        training,
        step(1), step(2), step(3),
        *evaluation(1, 3, adapter=True),
        ev.CheckpointSaved(step=3, path="checkpoints/step-000003"),
        training,
        sample(3, "tuned"),
        step(4),
        *evaluation(2, 4, adapter=True),
        ev.CheckpointSaved(step=4, path="checkpoints/step-000004"),
        training,
        sample(4, "tuned"),
        ev.PhaseEntered(phase="saving the adapter"),
        ev.AdapterSaved(step=4, held_out=evaluated[2].loss),
    ]  # fmt: skip
    assert made.accelerator.calls == ["reset", "release"], "after the third of four steps"
    assert evaluated[2].loss < evaluated[1].loss


def test_the_probe_names_the_rows_of_the_fullest_micro_batch(tiny_adapter_model, tmp_path):
    rows = [
        Example(tuple(range(3, 3 + length)), ((length - 2 - place, length),))
        for place, length in enumerate((30, 50, 12))
    ]
    made, recorder = setup(tiny_adapter_model, tmp_path / "run", make_plan(64)), Recorder(stop_after=0)
    outcome = loop.train(dataclasses.replace(made, train=rows), recorder.emit, recorder.find_request)
    (probe,) = recorder.of(ev.ProbeMeasured)
    assert (probe.tokens, probe.row_tokens) == (64, 50), "those of 50 and 12, filled up, and not the one of 30"
    assert (probe.trained_tokens, probe.padded) == (3 + 4, False)
    assert outcome == loop.Outcome("stopped", 0, outcome.total_steps, None, outcome.held_out)


def test_dropout_is_drawn_for_the_number_of_the_step_and_the_probe_is_step_0(tiny_adapter_model, tmp_path, monkeypatch):
    drawn, inner = [], loop.Accumulator.add_gradients

    def note(self, rows, *scale):
        drawn.append(rows)
        return inner(self, rows, *scale)

    monkeypatch.setattr(loop.Accumulator, "add_gradients", note)
    made, recorder = setup(tiny_adapter_model, tmp_path / "run", make_plan(100), optim__max_steps=3), Recorder()
    loop.train(made, recorder.emit, recorder.find_request)
    steps = plan_steps([len(row.input_ids) for row in made.train], made.config.optim)
    assert [(one.rows, one.step) for one in drawn[1:]] == [(step.rows, number) for number, step in enumerate(steps, 1)]
    assert drawn[0].step == 0 and len(drawn) == 4


def test_a_run_comes_by_every_point_at_which_a_fault_can_be_asked_for(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "_passed", faults.Counter())
    monkeypatch.setenv(faults.VARIABLE, "nowhere:error")
    model = attach_adapter(load_base(tiny_folder, FP32), LoraSettings(rank=2), torch.float32, seed=1)
    made = setup(model, tmp_path / "run", held_out=HELD_OUT, optim__max_steps=2, saving__adapter="last")
    recorder = Recorder()
    loop.train(made, recorder.emit, recorder.find_request)
    saves = len(recorder.of(ev.CheckpointSaved))
    assert saves == 2, "each step is the best so far"
    steps = {f"step.{point}": 2 for point in ("begin", "loss", "update", "end")}
    folders = {f"save.{point}": saves + 1 for point in ("begin", "filled", "manifest", "synced", "placed", "adapter")}
    states = {"save.optimizer": saves, "save.state": saves}
    expected = {"load": 1, "evaluate": 3, "ladder": 1 + 2 + 3, **steps, **folders, **states}
    assert {point: count for point, count in faults._passed.items() if point != "*"} == expected


def test_what_keeps_rows_padded_or_layers_slow_is_said_once_before_the_first_step(
    tiny_adapter_model, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "report_slow_paths", lambda model: "Some layers are slow.")
    tiny_adapter_model.config._attn_implementation = "eager"
    recorder = Recorder(stop_after=0)
    loop.train(setup(tiny_adapter_model, tmp_path / "run"), recorder.emit, recorder.find_request)
    reason = "its attention has no fused kernel that could be cut by row"
    assert recorder.events[:3] == [
        ev.PhaseEntered(phase="trying the largest step"),
        ev.Noted(text=f"Rows are padded and not packed: {reason}."),
        ev.Noted(text="Some layers are slow."),
    ]
    assert [event.padded for event in recorder.of(ev.ProbeMeasured)] == [True]


def test_an_update_without_memory_is_a_sentence_with_its_step_and_the_way_out(
    tiny_adapter_model, tmp_path, monkeypatch
):
    recorder, apply = Recorder(), Updates.apply

    def fail(self) -> None:
        if len(recorder.losses) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        apply(self)

    monkeypatch.setattr(Updates, "apply", fail)
    with pytest.raises(StudioError) as caught:
        loop.train(setup(tiny_adapter_model, tmp_path / "run"), recorder.emit, recorder.find_request)
    assert (caught.value.message, caught.value.hint) == (
        "Memory ran out in the update of step 3.",
        "Lower the rank, or choose the optimizer adamw_8bit.",
    )
    assert recorder.of(ev.CheckpointSaved) == [], "the weights may be those of no whole step"
    assert recorder.of(ev.Noted)[-1].text == "The update of step 3 did not finish. There is no checkpoint yet."
