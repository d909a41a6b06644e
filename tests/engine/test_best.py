"""The best step is kept, becomes the adapter, and is the same one whatever interrupts the run; patience ends it."""

from __future__ import annotations

import dataclasses

import pytest
from safetensors.torch import load_file

from qlora_studio.core import events as ev
from qlora_studio.core.config import LoraSettings
from qlora_studio.engine import loop, saving
from qlora_studio.engine.checkpoints import newest_checkpoint, read_position
from qlora_studio.engine.load import attach_adapter, load_base
from qlora_studio.engine.manifest import find_damage
from qlora_studio.engine.saving import Pacing
from tests.engine.conftest import FP32, make_examples, make_plan
from tests.engine.test_loop import Recorder, setup
from tests.matrix import mostly_slow

HELD_OUT = [9.0, 3.0, 2.0, 4.0, 5.0, 6.0, 7.0, 8.0]
"""A run of 8 steps that overfits from its third step on."""


@pytest.fixture
def scripted(monkeypatch):
    """Makes every evaluation give the number that this curve has for its step; the base's own is 4.5."""

    def set_curve(curve):
        def evaluate(self, *, adapter):
            loss = curve[self.step - 1] if adapter else 4.5
            self.emit(ev.EvaluationLogged(step=self.step, loss=loss, tokens=1, rows=1, adapter=adapter))
            return loss

        monkeypatch.setattr(loop.TrainingLoop, "_evaluate", evaluate)

    set_curve(HELD_OUT)
    return set_curve


def run(tiny_folder, folder, recorder=None, resume=None, **changes):
    model = attach_adapter(load_base(tiny_folder, FP32), LoraSettings(rank=4, dropout=0.2), torch_fp32(), seed=1)
    recorder = recorder or Recorder()
    values = {"evaluation__every_steps": 1, "saving__keep": 1, "lora__dropout": 0.2, **changes}
    made = setup(model, folder, held_out=make_examples(2, seed=9), **values)
    outcome = loop.train(dataclasses.replace(made, resume=resume), recorder.emit, recorder.find_request)
    return recorder, outcome


def torch_fp32():
    import torch

    return torch.float32


def checkpoints(folder) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def weights(folder) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def test_the_best_step_stays_beside_the_newest_and_is_the_adapter(tiny_folder, tmp_path, scripted):
    recorder, outcome = run(tiny_folder, tmp_path / "run")
    assert outcome.held_out.best == (3, 2.0) and outcome.held_out.beats_base
    assert checkpoints(tmp_path / "run") == ["step-000003", "step-000008"]
    assert recorder.of(ev.AdapterSaved) == [ev.AdapterSaved(step=3, held_out=2.0)]
    assert find_damage(tmp_path / "run" / "adapter") == ""
    assert weights(tmp_path / "run" / "adapter") == weights(tmp_path / "run" / "checkpoints" / "step-000003")
    assert weights(tmp_path / "run" / "adapter") != weights(tmp_path / "run" / "checkpoints" / "step-000008")


@pytest.mark.slow
def test_last_is_there_for_who_wants_it(tiny_folder, tmp_path, scripted):
    recorder, _ = run(tiny_folder, tmp_path / "run", saving__adapter="last")
    assert recorder.of(ev.AdapterSaved) == [ev.AdapterSaved(step=8, held_out=8.0)]
    assert weights(tmp_path / "run" / "adapter") == weights(tmp_path / "run" / "checkpoints" / "step-000008")
    assert checkpoints(tmp_path / "run") == ["step-000003", "step-000008"], "the best is kept all the same"


@pytest.mark.slow
@pytest.mark.parametrize("cut", mostly_slow([2, 3, 4, 6], 4))
def test_a_run_cut_anywhere_ends_with_the_same_curve_the_same_best_and_the_same_adapter(
    tiny_folder, tmp_path, scripted, cut
):
    whole, _ = run(tiny_folder, tmp_path / "whole")
    first, _ = run(tiny_folder, tmp_path / "cut", Recorder(stop_after=cut))
    checkpoint, _ = newest_checkpoint(tmp_path / "cut" / "checkpoints")
    assert checkpoint is not None and read_position(checkpoint).held_out.newest == (cut, HELD_OUT[cut - 1])
    rest, outcome = run(tiny_folder, tmp_path / "cut", resume=checkpoint)
    assert first.losses + rest.losses == whole.losses
    assert rest.of(ev.AdapterSaved) == whole.of(ev.AdapterSaved) and outcome.held_out.best == (3, 2.0)
    assert weights(tmp_path / "cut" / "adapter") == weights(tmp_path / "whole" / "adapter")


@pytest.mark.parametrize(("stop_after", "step"), [(3, 3), (5, 3)], ids=["still falling", "rising again"])
def test_a_stopped_run_leaves_its_newest_weights_while_the_loss_falls_and_the_best_after(
    tiny_folder, tmp_path, scripted, stop_after, step
):
    recorder, outcome = run(tiny_folder, tmp_path / "run", Recorder(stop_after=stop_after))
    assert outcome.ending == "stopped" and recorder.of(ev.AdapterSaved)[0].step == step


def test_a_paused_run_writes_a_checkpoint_and_no_adapter(tiny_folder, tmp_path, scripted):
    recorder = Recorder()
    recorder.find_request = lambda: "pause" if len(recorder.losses) == 2 else ""
    _, outcome = run(tiny_folder, tmp_path / "run", recorder)
    assert outcome.ending == "paused" and outcome.stopped
    assert checkpoints(tmp_path / "run") == ["step-000002"] and not (tmp_path / "run" / "adapter").exists()


@pytest.mark.slow
def test_patience_ends_a_run_and_a_kill_changes_nothing_of_where(tiny_folder, tmp_path, scripted):
    recorder, outcome = run(tiny_folder, tmp_path / "run", evaluation__patience=2)
    assert (outcome.ending, outcome.step, outcome.total_steps) == ("early", 5, 8) and not outcome.stopped
    assert recorder.of(ev.AdapterSaved) == [ev.AdapterSaved(step=3, held_out=2.0)]
    assert recorder.of(ev.Noted)[-1].text == (
        "The held-out loss has not become better since step 3: the run ends here, as its patience says."
    )
    first, _ = run(tiny_folder, tmp_path / "cut", Recorder(stop_after=4), evaluation__patience=2)
    checkpoint, _ = newest_checkpoint(tmp_path / "cut" / "checkpoints")
    rest, again = run(tiny_folder, tmp_path / "cut", resume=checkpoint, evaluation__patience=2)
    assert again == outcome and first.losses + rest.losses == recorder.losses
    last, _ = newest_checkpoint(tmp_path / "cut" / "checkpoints")
    over, once_more = run(tiny_folder, tmp_path / "cut", resume=last, evaluation__patience=2)
    assert over.losses == [] and once_more.ending == "early", "a run resumed after its end takes no further step"


def test_an_evaluation_that_an_error_cut_off_is_made_up_for(tiny_folder, tmp_path, scripted, monkeypatch):
    evaluate = loop.TrainingLoop._evaluate

    def fail_once(self, *, adapter):
        if adapter and self.step == 2:
            raise ValueError("a broken kernel")
        return evaluate(self, adapter=adapter)

    with monkeypatch.context() as patch:
        patch.setattr(loop.TrainingLoop, "_evaluate", fail_once)
        with pytest.raises(ValueError, match="a broken kernel"):
            run(tiny_folder, tmp_path / "cut")
    checkpoint, _ = newest_checkpoint(tmp_path / "cut" / "checkpoints")
    assert checkpoint is not None and checkpoint.name == "step-000002"
    rest, outcome = run(tiny_folder, tmp_path / "cut", resume=checkpoint)
    assert rest.of(ev.EvaluationLogged)[0].step == 2
    assert [loss for _, loss in outcome.held_out.evaluations] == HELD_OUT


def test_a_damaged_best_checkpoint_is_named_and_the_last_step_is_the_adapter(tiny_folder, tmp_path, scripted):
    recorder = Recorder(stop_after=5)
    run(tiny_folder, tmp_path / "run", recorder, saving__keep=3)
    file = tmp_path / "run" / "checkpoints" / "step-000003" / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    checkpoint, _ = newest_checkpoint(tmp_path / "run" / "checkpoints")
    rest, _ = run(tiny_folder, tmp_path / "run", resume=checkpoint, saving__keep=3)
    assert rest.of(ev.AdapterSaved) == [ev.AdapterSaved(step=8, held_out=8.0)]
    assert rest.of(ev.Noted)[-1].text == (
        f"{file} is not what was written. So the adapter is that of step 8, not of the best step."
    )


def test_pinned_checkpoints_stay_and_damaged_later_ones_push_none_out(tiny_folder, tmp_path, scripted):
    model = attach_adapter(load_base(tiny_folder, FP32), LoraSettings(rank=4), torch_fp32(), seed=1)
    recorder = Recorder()
    requests = iter(["", *["save"] * 20])
    made = setup(model, tmp_path / "run", saving__keep=1)
    for step in (90, 91):
        (tmp_path / "run" / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    loop.train(dataclasses.replace(made, pinned=lambda: [2]), recorder.emit, lambda: next(requests))
    assert checkpoints(tmp_path / "run") == ["step-000002", "step-000008", "step-000090", "step-000091"]
    assert newest_checkpoint(tmp_path / "run" / "checkpoints")[0] == tmp_path / "run" / "checkpoints" / "step-000008"


def test_the_files_beside_the_adapter_are_part_of_it(tiny_folder, tmp_path, scripted):
    model = attach_adapter(load_base(tiny_folder, FP32), LoraSettings(rank=4), torch_fp32(), seed=1)
    recorder = Recorder()
    made = setup(model, tmp_path / "run", held_out=make_examples(2, seed=9), evaluation__every_steps=1)
    also = lambda stage: (stage / "tokenizer_config.json").write_text("{}")  # noqa: E731
    loop.train(dataclasses.replace(made, also=also), recorder.emit, recorder.find_request)
    (tmp_path / "run" / "adapter" / "tokenizer_config.json").write_text("{ }")
    assert "tokenizer_config.json is missing or of another size" in find_damage(tmp_path / "run" / "adapter")
    assert load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")


def test_saving_by_time_never_takes_more_than_its_share():
    clock = [0.0]
    pacing = Pacing(1.0, lambda: clock[0])
    spent = 0.0
    while clock[0] < 10_000:
        clock[0] += 1
        if pacing.is_due:
            begun = clock[0]
            clock[0] += 12  # a slow disk: 12 seconds a save
            spent += 12
            pacing.saved(begun)
    assert 0 < spent <= saving.MOST_SHARE * clock[0] + 12


def test_after_a_failed_save_the_next_is_tried_within_a_minute():
    clock = [0.0]
    pacing = Pacing(10.0, lambda: clock[0])
    clock[0] = 601
    assert pacing.is_due
    pacing.failed()
    assert not pacing.is_due
    clock[0] += 61
    assert pacing.is_due


@pytest.mark.parametrize("dtype", mostly_slow(["fp32", "fp16"], "fp32"))
@pytest.mark.parametrize("count", mostly_slow([5, 50], 5))
def test_losses_that_are_not_finite_at_random_steps_never_reach_the_weights(
    tiny_folder, tmp_path, monkeypatch, dtype, count
):
    """Each is refused and said; the weights of every checkpoint stay finite, with and without a loss scale."""
    import random

    import torch

    from qlora_studio import faults
    from qlora_studio.engine.load import Device

    rng, device = (
        random.Random(count),
        Device(FP32.accelerator, getattr(torch, {"fp32": "float32"}.get(dtype, "float16"))),
    )
    steps = sorted(rng.sample(range(1, 3 * count, 2), count))  # never three in a row
    monkeypatch.setattr(faults, "_passed", faults.Counter())
    monkeypatch.setenv(faults.VARIABLE, ",".join(f"step.loss:nan@{step}" for step in steps))
    model = attach_adapter(load_base(tiny_folder, device), LoraSettings(rank=4), torch_fp32(), seed=1)
    recorder = Recorder()
    made = setup(model, tmp_path / "run", optim__epochs=count, optim__max_steps=3 * count, saving__keep=1000)
    requests = iter(["", *["save"] * 9999])
    loop.train(made, recorder.emit, lambda: next(requests))
    assert [event.step for event in recorder.of(ev.UpdateSkipped)] == steps
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        assert all(bool(value.isfinite().all()) for value in load_file(folder / "adapter_model.safetensors").values())


MATRIX = [
    (optimizer, schedule, dropout, micro, cut)
    for optimizer in ("adamw", "adamw_8bit")
    for schedule in ("cosine", "linear", "constant")
    for dropout in (0.0, 0.2)
    for micro, cut in ((60, 1), (200, 3), (4096, 7))
]
"""36 ways to cut a run: optimizers, schedules, dropout, rows a micro-batch, and an epoch's edge among the steps."""


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "schedule", "dropout", "micro", "cut"), MATRIX)
def test_every_kind_of_run_goes_on_to_the_last_bit(tiny_folder, tmp_path, optimizer, schedule, dropout, micro, cut):
    changes = {"optim__schedule": schedule, "lora__dropout": dropout, "evaluation__every_steps": 2}

    def train(folder, stop_after=None, resume=None):
        model = attach_adapter(
            load_base(tiny_folder, FP32), LoraSettings(rank=32, dropout=dropout), torch_fp32(), seed=1
        )
        recorder = Recorder(stop_after)
        made = setup(model, folder, make_plan(micro, optimizer), held_out=make_examples(3, seed=9), **changes)
        outcome = loop.train(dataclasses.replace(made, resume=resume), recorder.emit, recorder.find_request)
        return recorder, outcome

    whole, expected = train(tmp_path / "whole")
    first, _ = train(tmp_path / "cut", cut)
    checkpoint, _ = newest_checkpoint(tmp_path / "cut" / "checkpoints")
    rest, outcome = train(tmp_path / "cut", resume=checkpoint)
    assert first.losses + rest.losses == whole.losses and outcome.held_out == expected.held_out
    assert weights(tmp_path / "cut" / "adapter") == weights(tmp_path / "whole" / "adapter")


def test_no_checkpoint_is_ahead_of_the_journal(tiny_adapter_model, tmp_path):
    """Where lines wait for a full disk, a kill would take them along: a newer checkpoint would never log them again."""
    made = setup(tiny_adapter_model, tmp_path, saving__every_minutes=1e-9, optim__max_steps=4)
    behind = Recorder()
    loop.train(dataclasses.replace(made, all_logged=lambda: len(behind.losses) < 2), behind.emit, lambda: "")
    assert [event.step for event in behind.of(ev.CheckpointSaved)] == [1]


def test_an_error_right_after_a_step_leaves_it_logged_as_well_as_saved(tiny_adapter_model, tmp_path, monkeypatch):
    made, recorder = setup(tiny_adapter_model, tmp_path, optim__max_steps=4), Recorder()
    passed = iter((None, OSError("gone")))

    def fail_second(point):
        if point == "step.end" and (error := next(passed)) is not None:
            raise error

    monkeypatch.setattr(loop, "fault", fail_second)
    with pytest.raises(OSError, match="gone"):
        loop.train(made, recorder.emit, lambda: "")
    assert len(recorder.losses) == 2 and recorder.of(ev.CheckpointSaved)[-1].step == 2
