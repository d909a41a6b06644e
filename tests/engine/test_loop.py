"""The loop: exact however it is cut, retried or resumed, stoppable, and never worse for a number that is not finite."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from qlora_studio.core import events as ev
from qlora_studio.core.config import LoraSettings
from qlora_studio.core.errors import StudioError
from qlora_studio.engine import loop
from qlora_studio.engine.checkpoints import newest_checkpoint, read_position
from qlora_studio.engine.forward import LossFunction
from qlora_studio.engine.ladder import Limits
from qlora_studio.engine.load import Device, attach_adapter, load_adapter, load_base
from qlora_studio.engine.manifest import find_damage
from qlora_studio.engine.setup import Setup
from qlora_studio.engine.updates import Updates
from tests.engine.conftest import FP32, make_config, make_examples, make_plan
from tests.matrix import mostly_slow


class Recorder:
    """Collects events and answers requests from a schedule of steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.events: list[ev.Event] = []
        self.stop_after = stop_after

    def emit(self, event: ev.Event) -> None:
        self.events.append(event)

    def find_request(self):
        return "stop" if self.stop_after is not None and len(self.losses) >= self.stop_after else ""

    @property
    def losses(self) -> list[float]:
        return [event.loss for event in self.events if isinstance(event, ev.StepLogged)]

    def of(self, kind: type[ev.Event]) -> list[ev.Event]:
        return [event for event in self.events if isinstance(event, kind)]


def setup(model, folder, plan=None, held_out=(), rows=12, **changes) -> Setup:
    folder.mkdir(exist_ok=True)
    values = {"optim__batch_tokens": 120, "optim__epochs": 2, "optim__learning_rate": 5e-3, "optim__optimizer": "adamw"}
    config = make_config(**{**values, **changes})
    return Setup(
        config=config,
        plan=plan or make_plan(200),
        accelerator=FP32.accelerator,
        model=model,
        train=make_examples(rows, seed=7),
        held_out=list(held_out),
        folder=folder,
        base="tiny/base",
        revision="abc",
    )


def test_a_run_learns_evaluates_and_leaves_an_adapter_that_peft_loads(tiny_folder, tiny_adapter_model, tmp_path):
    recorder = Recorder()
    outcome = loop.train(
        setup(tiny_adapter_model, tmp_path / "run", held_out=make_examples(4, seed=8), saving__adapter="last"),
        recorder.emit,
        recorder.find_request,
    )
    assert not outcome.stopped and outcome.step == outcome.total_steps == len(recorder.losses)
    assert recorder.losses[-1] < recorder.losses[0]
    measured = recorder.of(ev.EvaluationLogged)
    assert [event.adapter for event in measured] == [False, *[True] * (len(measured) - 1)] and measured[
        -1
    ].step == outcome.step
    assert len(recorder.of(ev.ProbeMeasured)) == 1
    assert find_damage(tmp_path / "run" / "adapter") == ""
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"], config["r"]) == ("tiny/base", "abc", 4)
    ids = torch.randint(3, 250, (1, 12))
    expected = tiny_adapter_model(ids).logits
    theirs = PeftModel.from_pretrained(load_base(tiny_folder, FP32), tmp_path / "run" / "adapter")
    assert torch.allclose(theirs(ids).logits, expected, atol=1e-5)
    ours = load_adapter(load_base(tiny_folder, FP32), tmp_path / "run" / "adapter")
    assert torch.allclose(ours(ids).logits, expected, atol=1e-6)


def test_stop_saves_the_adapter_before_leaving(tiny_adapter_model, tmp_path):
    recorder = Recorder(stop_after=2)
    outcome = loop.train(setup(tiny_adapter_model, tmp_path / "run"), recorder.emit, recorder.find_request)
    assert outcome.stopped and outcome.step == 2 == len(recorder.losses)
    assert find_damage(tmp_path / "run" / "adapter") == ""


@pytest.mark.parametrize("optimizer", mostly_slow(["adamw", "adamw_8bit"], "adamw"))
@pytest.mark.parametrize("cut", [3, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 5))])
def test_a_stopped_run_goes_on_with_the_identical_curve(tiny_folder, tmp_path, optimizer, cut):
    changes = {"lora__dropout": 0.2, "optim__schedule": "linear", "optim__warmup_share": 0.2}

    def run(folder, stop_after=None, resume=None):
        model = attach_adapter(load_base(tiny_folder, FP32), LoraSettings(rank=32, dropout=0.2), torch.float32, seed=1)
        recorder = Recorder(stop_after)
        made = setup(model, folder, make_plan(200, optimizer), held_out=make_examples(2, seed=9), **changes)
        loop.train(dataclasses.replace(made, resume=resume), recorder.emit, recorder.find_request)
        return recorder, (folder / "adapter" / "adapter_model.safetensors").read_bytes()

    whole, adapter = run(tmp_path / "whole")
    first, _ = run(tmp_path / "cut", stop_after=cut)
    checkpoint, damages = newest_checkpoint(tmp_path / "cut" / "checkpoints")
    assert checkpoint is not None and checkpoint.name == f"step-{cut:06d}" and damages == []
    rest, adapter_again = run(tmp_path / "cut", resume=checkpoint)
    assert first.losses + rest.losses == whole.losses
    assert adapter_again == adapter
    assert [event.learning_rate for event in rest.of(ev.StepLogged)] == [
        event.learning_rate for event in whole.of(ev.StepLogged)[cut:]
    ]


def test_a_damaged_checkpoint_is_passed_over_and_named(tiny_adapter_model, tmp_path):
    recorder = Recorder(stop_after=2)
    loop.train(setup(tiny_adapter_model, tmp_path / "run"), recorder.emit, recorder.find_request)
    checkpoints = tmp_path / "run" / "checkpoints"
    shutil.copytree(checkpoints / "step-000002", checkpoints / "step-000009")
    file = checkpoints / "step-000009" / "optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    found, damages = newest_checkpoint(checkpoints)
    assert found == checkpoints / "step-000002" and damages == [f"{file} is not what was written."]


class Faults:
    """Raises out-of-memory at chosen calls of the loss, in the forward or in the middle of the backward pass."""

    def __init__(self, count: int, seed: int) -> None:
        self.rng, self.left, self.raised = random.Random(seed), count, 0

    def __call__(self, inner, batch):
        loss = inner(batch)
        if self.left and self.rng.random() < 0.5:
            self.left -= 1
            self.raised += 1
            error = self.rng.choice(
                [
                    torch.OutOfMemoryError("CUDA out of memory."),
                    MemoryError(),
                    RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"),
                ]
            )
            if self.rng.random() < 0.5:
                raise error
            loss.register_hook(lambda grad: (_ for _ in ()).throw(error))
        return loss


@pytest.mark.slow
@pytest.mark.parametrize("count", [4, 100])
def test_out_of_memories_lose_no_step_and_change_no_loss(tiny_folder, tmp_path, monkeypatch, count):
    original = LossFunction.row_losses

    def run(folder, faults):
        monkeypatch.setattr(
            LossFunction,
            "row_losses",
            lambda self, batch: faults(lambda same: original(self, same), batch),
        )
        model = attach_adapter(load_base(tiny_folder, FP32), LoraSettings(rank=4), torch.float32, seed=1)
        recorder = Recorder()
        loop.train(setup(model, folder, make_plan(4096), rows=24), recorder.emit, recorder.find_request)
        return recorder

    whole = run(tmp_path / "whole", Faults(0, 0))
    raised, seed = 0, 0
    while raised < count:
        faults = Faults(8, seed)
        recorder = run(tmp_path / f"faulty-{seed}", faults)
        assert len(recorder.losses) == len(whole.losses)
        assert recorder.losses == pytest.approx(whole.losses, abs=1e-5)
        assert len(recorder.of(ev.StepRetriedSmaller)) == faults.raised
        raised += faults.raised
        seed += 1


def test_when_nothing_can_be_made_smaller_the_run_stops_with_a_checkpoint_and_the_number(
    tiny_adapter_model, tmp_path, monkeypatch
):
    original = LossFunction.row_losses

    def fail_from_step_two(self, batch):
        if len(recorder.losses) >= 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(self, batch)

    monkeypatch.setattr(LossFunction, "row_losses", fail_from_step_two)
    recorder = Recorder()
    with pytest.raises(StudioError, match=r"One row of \d+ tokens does not fit: \d+\.\d\d GiB were in use"):
        loop.train(setup(tiny_adapter_model, tmp_path / "run"), recorder.emit, recorder.find_request)
    checkpoint, _ = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None and checkpoint.name == "step-000002"


def test_an_8_bit_optimizer_learns_too(tiny_adapter_model, tmp_path):
    recorder = Recorder()
    loop.train(
        setup(tiny_adapter_model, tmp_path / "run", make_plan(200, "adamw_8bit")), recorder.emit, recorder.find_request
    )
    assert recorder.losses[-1] < recorder.losses[0]


def test_an_adapter_of_another_base_is_refused_by_name(tiny_adapter_model, tiny_folder, tmp_path):
    recorder = Recorder()
    loop.train(setup(tiny_adapter_model, tmp_path / "run"), recorder.emit, recorder.find_request)
    file = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    state = load_file(file)
    state.pop(next(iter(state)))
    save_file(state, file)
    with pytest.raises(StudioError, match="made for another base: 1 weights do not match"):
        load_adapter(load_base(tiny_folder, FP32), tmp_path / "run" / "adapter")
    assert "adapter_model.safetensors is missing or of another size" in find_damage(tmp_path / "run" / "adapter")


def refuse_some(monkeypatch, steps: set[int], recorder: Recorder) -> None:
    """Makes the loss of these steps NaN; gradients with it."""
    original = LossFunction.row_losses

    def row_losses(self, batch):
        bad = recorder.of(ev.ProbeMeasured) and len(recorder.losses) + 1 in steps
        return original(self, batch) * (float("nan") if bad else 1)

    monkeypatch.setattr(LossFunction, "row_losses", row_losses)


def adapter_of(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items() if "lora_" in name}


def test_three_updates_in_a_row_that_are_not_finite_end_the_run_and_the_adapter_before_them_is_saved(
    tiny_adapter_model, tmp_path, monkeypatch
):
    recorder = Recorder()
    refuse_some(monkeypatch, {3, 4, 5}, recorder)
    run = setup(tiny_adapter_model, tmp_path / "run")
    with pytest.raises(StudioError, match=r"^3 updates in a row were not finite; the last rows were "):
        loop.train(run, recorder.emit, recorder.find_request)
    assert [event.step for event in recorder.of(ev.UpdateSkipped)] == [3, 4, 5]
    assert len(recorder.losses) == 4
    assert find_damage(tmp_path / "run" / "adapter") == ""
    saved = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    for name, value in adapter_of(tiny_adapter_model).items():
        assert torch.equal(saved[name.replace(".default", "")], value) and bool(value.isfinite().all())
    checkpoint, _ = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None and read_position(checkpoint).step == 4


def test_a_refused_update_changes_no_weight_and_a_finite_one_starts_the_count_anew(
    tiny_adapter_model, tmp_path, monkeypatch
):
    recorder, applied = Recorder(), []
    refuse_some(monkeypatch, {1, 2, 4, 5}, recorder)
    apply = Updates.apply
    monkeypatch.setattr(Updates, "apply", lambda self: (applied.append(len(recorder.losses) + 1), apply(self)))
    outcome = loop.train(setup(tiny_adapter_model, tmp_path / "run"), recorder.emit, recorder.find_request)
    assert [event.step for event in recorder.of(ev.UpdateSkipped)] == [1, 2, 4, 5]
    assert applied == [3, *range(6, outcome.total_steps + 1)]
    rates = [event.learning_rate for event in recorder.of(ev.StepLogged)]
    assert len(set(rates)) == len(rates), "the schedule moves on over refused updates"


FP16 = Device(FP32.accelerator, torch.float16)


@pytest.fixture
def fp16_model(tiny_folder):
    return attach_adapter(load_base(tiny_folder, FP16), LoraSettings(rank=4), torch.float32, seed=1)


def test_fp16_searches_its_loss_scale_says_so_and_loses_no_step(fp16_model, tmp_path, monkeypatch):
    """A real GradScaler: the gradient overflows at 65536, the step is computed again at half of it."""
    original = LossFunction.row_losses
    monkeypatch.setattr(LossFunction, "row_losses", lambda self, batch: original(self, batch) * 50)
    recorder = Recorder()
    outcome = loop.train(setup(fp16_model, tmp_path / "run"), recorder.emit, recorder.find_request)
    notes = [event.text for event in recorder.of(ev.Noted)]
    assert notes[0] == "Step 1: the gradient overflowed fp16; it is computed again at loss scale 32768."
    assert 1 <= len(notes) < 16 and recorder.of(ev.UpdateSkipped) == []
    assert outcome.step == outcome.total_steps == len(recorder.losses)
    assert recorder.losses[-1] < recorder.losses[0]


@pytest.mark.slow
def test_fp16_gradients_that_are_never_finite_end_the_run_with_its_weights(fp16_model, tmp_path, monkeypatch):
    original = LossFunction.row_losses

    def poison(self, batch):
        losses = original(self, batch)
        if losses.requires_grad:
            losses.register_hook(lambda gradient: gradient * float("nan"))
        return losses

    monkeypatch.setattr(LossFunction, "row_losses", poison)
    before, recorder = adapter_of(fp16_model), Recorder()
    with pytest.raises(StudioError, match="3 updates in a row were not finite"):
        loop.train(setup(fp16_model, tmp_path / "run"), recorder.emit, recorder.find_request)
    assert [event.step for event in recorder.of(ev.UpdateSkipped)] == [1, 2, 3]
    assert len(recorder.of(ev.Noted)) == 16, "from 65536 down to 1"
    assert all(torch.equal(value, before[name]) for name, value in adapter_of(fp16_model).items())


def last_checkpoint(folder):
    checkpoint, damages = newest_checkpoint(folder / "checkpoints")
    assert damages == []
    return checkpoint


@pytest.mark.slow
def test_an_error_inside_a_step_leaves_a_checkpoint_from_which_the_curve_is_the_same(
    tiny_folder, tmp_path, monkeypatch
):
    def run(folder, fail_at=None, resume=None):
        model = attach_adapter(load_base(tiny_folder, FP32), LoraSettings(rank=4, dropout=0.2), torch.float32, seed=1)
        recorder = Recorder()
        original = LossFunction.row_losses

        def row_losses(self, batch):
            if fail_at is not None and len(recorder.losses) == fail_at and torch.rand(1) < 2:
                raise ValueError("a broken kernel")
            return original(self, batch)

        with monkeypatch.context() as patch:
            patch.setattr(LossFunction, "row_losses", row_losses)
            made = setup(model, folder, held_out=make_examples(2, seed=9))
            if fail_at is None:
                loop.train(dataclasses.replace(made, resume=resume), recorder.emit, recorder.find_request)
            else:
                with pytest.raises(ValueError, match="a broken kernel"):
                    loop.train(made, recorder.emit, recorder.find_request)
        return recorder

    whole = run(tmp_path / "whole")
    first = run(tmp_path / "cut", fail_at=2)
    checkpoint = last_checkpoint(tmp_path / "cut")
    assert checkpoint.name == "step-000002" and first.events[-1] == ev.CheckpointSaved(
        step=2, path="checkpoints/step-000002"
    )
    assert first.losses + run(tmp_path / "cut", resume=checkpoint).losses == whole.losses


def test_an_update_that_runs_out_of_memory_leaves_the_last_checkpoint_and_names_it(
    tiny_adapter_model, tmp_path, monkeypatch
):
    recorder, apply = Recorder(), Updates.apply

    def fail_in_step_three(self):
        if len(recorder.losses) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        apply(self)

    monkeypatch.setattr(Updates, "apply", fail_in_step_three)
    requests = iter(["", "", "save"] + [""] * 99)
    with pytest.raises(StudioError, match=r"^Memory ran out in the update of step 3\."):
        loop.train(setup(tiny_adapter_model, tmp_path / "run"), recorder.emit, lambda: next(requests))
    assert last_checkpoint(tmp_path / "run").name == "step-000001"
    assert recorder.events[-1] == ev.Noted(
        text="The update of step 3 did not finish. The last checkpoint is that of step 1."
    )


def test_a_disk_that_is_full_costs_a_word_in_mid_run_and_at_its_end_leaves_the_last_checkpoint(
    tiny_adapter_model, tmp_path, monkeypatch
):
    recorder = Recorder()
    requests = iter(["", "save", "", "save"] + [""] * 99)

    def find_request_then_full():
        request = next(requests)
        if len(recorder.losses) == 2:
            monkeypatch.setattr("qlora_studio.engine.checkpoints.save_file", no_space)
        return request

    def no_space(*_, **__):
        raise OSError(28, "No space left on device")

    with pytest.raises(StudioError, match=r"Saving failed: \[Errno 28\] No space left on device\.") as caught:
        loop.train(setup(tiny_adapter_model, tmp_path / "run"), recorder.emit, find_request_then_full)
    assert "The last checkpoint is that of step 0." in caught.value.hint
    assert last_checkpoint(tmp_path / "run").name == "step-000000"
    assert not (tmp_path / "run" / "checkpoints" / ".stage").exists()
    assert len(recorder.losses) == 8, "the run went on to its last step"
    place = tmp_path / "run" / "checkpoints"
    words = "Saving failed: [Errno 28] No space left on device. The last checkpoint is that of step 0. The run goes on."
    assert [event.text for event in recorder.of(ev.Noted)] == [
        f"Step 2: {place}/step-000002: {words}",
        f"Step 8: {place}/step-000008: {words}",
        "Step 8 could not be saved (StudioError). The last checkpoint is that of step 0.",
    ]


@pytest.mark.slow
def test_evaluation_that_runs_out_of_memory_goes_on_smaller_and_so_does_training(
    tiny_adapter_model, tmp_path, monkeypatch
):
    original, recorder = LossFunction.row_losses, Recorder()

    def fail_on_large_evaluations(self, batch):
        if not torch.is_grad_enabled() and batch.ids.numel() > 100:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(self, batch)

    monkeypatch.setattr(LossFunction, "row_losses", fail_on_large_evaluations)
    run = setup(tiny_adapter_model, tmp_path / "run", held_out=make_examples(6, seed=8))
    outcome = loop.train(run, recorder.emit, recorder.find_request)
    assert [event.micro_batch_tokens for event in recorder.of(ev.StepRetriedSmaller)] == [100]
    assert not outcome.stopped and outcome.held_out_after is not None


@pytest.mark.slow
def test_a_resumed_run_keeps_the_limits_it_had_come_down_to(tiny_folder, tmp_path, monkeypatch):
    original, seen = LossFunction.row_losses, []

    def run(stop_after=None, resume=None, most=10_000):
        model = attach_adapter(load_base(tiny_folder, FP32), LoraSettings(rank=4), torch.float32, seed=1)
        recorder = Recorder(stop_after)

        def row_losses(self, batch):
            if batch.ids.numel() > most:
                raise MemoryError
            seen.append(batch.ids.numel())
            return original(self, batch)

        with monkeypatch.context() as patch:
            patch.setattr(LossFunction, "row_losses", row_losses)
            made = setup(model, tmp_path / "run", make_plan(400))
            loop.train(dataclasses.replace(made, resume=resume), recorder.emit, recorder.find_request)
        return recorder

    assert run(stop_after=2, most=100).of(ev.StepRetriedSmaller)
    checkpoint = last_checkpoint(tmp_path / "run")
    assert read_position(checkpoint).limits == Limits(100, 0, 2, can_tile=True)
    seen.clear()
    assert run(resume=checkpoint).of(ev.StepRetriedSmaller) == []
    assert max(seen) <= 100


@pytest.mark.slow
def test_a_checkpoint_of_an_earlier_version_has_no_limits_and_is_resumed(tiny_adapter_model, tmp_path):
    recorder = Recorder(stop_after=1)
    run = setup(tiny_adapter_model, tmp_path / "run")
    loop.train(run, recorder.emit, recorder.find_request)
    checkpoint = last_checkpoint(tmp_path / "run")
    state = json.loads((checkpoint / "state.json").read_text())
    del state["position"]["limits"]
    (checkpoint / "state.json").write_text(json.dumps(state))
    rest = Recorder()
    outcome = loop.train(dataclasses.replace(run, resume=checkpoint), rest.emit, rest.find_request)
    assert rest.of(ev.Resumed) == [ev.Resumed(step=1)] and outcome.step == outcome.total_steps


def test_a_save_request_is_answered_and_only_the_newest_are_kept(tiny_adapter_model, tmp_path):
    recorder = Recorder()
    requests = iter(["", "", "save", "save", "save"] + [""] * 99)
    run = setup(tiny_adapter_model, tmp_path / "run", saving__keep=2)
    loop.train(run, recorder.emit, lambda: next(requests))
    assert [event.step for event in recorder.of(ev.CheckpointSaved)] == [1, 2, 3, 8]
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-000003", "step-000008"]


def test_the_probe_tries_the_largest_micro_batch_and_changes_nothing(tiny_adapter_model, tmp_path):
    before, recorder = adapter_of(tiny_adapter_model), Recorder(stop_after=0)
    run = setup(tiny_adapter_model, tmp_path / "run", make_plan(100))
    outcome = loop.train(run, recorder.emit, recorder.find_request)
    (probe,) = recorder.of(ev.ProbeMeasured)
    assert outcome.stopped and outcome.step == 0
    assert probe.row_tokens <= probe.tokens <= 100 and 0 < probe.trained_tokens < probe.tokens
    assert all(torch.equal(value, before[name]) for name, value in adapter_of(tiny_adapter_model).items())
    assert all(parameter.grad is None for parameter in tiny_adapter_model.parameters())


@pytest.mark.slow
def test_speed_and_time_left_are_of_this_process_also_after_a_resume(tiny_adapter_model, tmp_path, monkeypatch):
    """Every update takes two seconds by a clock that only updates move."""
    clock, apply = [100.0], Updates.apply

    def two_seconds(self) -> None:
        clock[0] += 2
        apply(self)

    monkeypatch.setattr(Updates, "apply", two_seconds)
    monkeypatch.setattr(loop.time, "monotonic", lambda: clock[0])
    made, first, rest = setup(tiny_adapter_model, tmp_path / "run"), Recorder(stop_after=3), Recorder()
    loop.train(made, first.emit, first.find_request)
    clock[0] += 50
    loop.train(dataclasses.replace(made, resume=last_checkpoint(made.folder)), rest.emit, rest.find_request)
    logged = first.of(ev.StepLogged) + rest.of(ev.StepLogged)
    assert [event.step for event in logged] == list(range(1, logged[0].total_steps + 1))
    for event in logged:
        assert event.tokens_per_second == event.tokens / 2
        assert event.seconds_left == 2 * (event.total_steps - event.step)
        assert 0 < event.trained_tokens < event.tokens <= 120
    assert sum(event.tokens for event in logged) == 2 * sum(len(row.input_ids) for row in made.train)


@pytest.mark.slow
def test_a_checkpoint_is_written_when_so_many_minutes_are_over(tiny_adapter_model, tmp_path, monkeypatch):
    clock, apply = [0.0], Updates.apply

    def a_minute(self) -> None:
        clock[0] += 60
        apply(self)

    monkeypatch.setattr(Updates, "apply", a_minute)
    monkeypatch.setattr(loop.time, "monotonic", lambda: clock[0])
    recorder = Recorder()
    run = setup(tiny_adapter_model, tmp_path / "run", saving__every_minutes=2.5)
    outcome = loop.train(run, recorder.emit, recorder.find_request)
    assert outcome.total_steps == 8
    assert [event.step for event in recorder.of(ev.CheckpointSaved)] == [3, 6, 8], "and the last step"
