"""The loop: exact whatever the cutting, stoppable, and never worse for a number that is not finite."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, Gemma2Config

from qlora_studio.core import events as ev
from qlora_studio.core.config import LoraSettings
from qlora_studio.core.errors import StudioError
from qlora_studio.core.example import Example
from qlora_studio.engine import loop
from qlora_studio.engine.batches import collate, micro_batches
from qlora_studio.engine.checkpoints import find_damage, newest_checkpoint
from qlora_studio.engine.evaluate import held_out_loss
from qlora_studio.engine.forward import LossFunction
from qlora_studio.engine.kernels.checkpointing import checkpoint_layers
from qlora_studio.engine.load import attach_adapter, load_adapter, load_base
from tests.engine.conftest import FP32, make_config, make_examples, make_plan


def gradients(model, examples, micro_batch_tokens: int, checkpointed: int = 0, offload: bool = False) -> torch.Tensor:
    """The gradient of the mean loss over all trained tokens, whatever the micro-batches."""
    model.train()
    model.zero_grad(set_to_none=True)
    checkpoint_layers(model, checkpointed, offload=offload)
    loss_function = LossFunction(model)
    trained = sum(example.trained_tokens for example in examples)
    lengths = [len(example.input_ids) for example in examples]
    for rows in micro_batches(range(len(examples)), lengths, micro_batch_tokens):
        (loss_function(*collate([examples[row] for row in rows], torch.device("cpu"))) / trained).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("micro_batch_tokens", [60, 90, 150, 10_000])
def test_the_gradient_does_not_depend_on_the_micro_batches(tiny_adapter_model, micro_batch_tokens):
    examples = make_examples(8, seed=3)
    one_by_one = gradients(tiny_adapter_model, examples, 1)
    assert relative(gradients(tiny_adapter_model, examples, micro_batch_tokens), one_by_one) < 1e-5


@pytest.mark.parametrize("checkpointed", [1, 2])
def test_layers_computed_twice_give_the_same_gradient(tiny_adapter_model, checkpointed):
    examples = make_examples(4, seed=4)
    assert (
        relative(
            gradients(tiny_adapter_model, examples, 200, checkpointed), gradients(tiny_adapter_model, examples, 200)
        )
        < 1e-6
    )


@pytest.mark.parametrize("checkpointed", [1, 2])
def test_inputs_that_wait_in_the_computers_memory_give_the_same_gradient(tiny_adapter_model, checkpointed):
    examples = make_examples(4, seed=4)
    reference = gradients(tiny_adapter_model, examples, 200)
    assert relative(gradients(tiny_adapter_model, examples, 200, checkpointed, offload=True), reference) < 1e-6


def test_chunked_loss_equals_the_models_own(tiny_adapter_model):
    examples = make_examples(5, seed=5)
    loss_function = LossFunction(tiny_adapter_model)
    assert loss_function.chunked
    loss_function.chunk = 3
    ids, labels = collate(examples, torch.device("cpu"))
    chunked = loss_function(ids, labels)
    grads = torch.autograd.grad(chunked, [p for p in tiny_adapter_model.parameters() if p.requires_grad])
    plain = loss_function._plain(ids, labels)
    reference = torch.autograd.grad(plain, [p for p in tiny_adapter_model.parameters() if p.requires_grad])
    assert float(chunked) == pytest.approx(float(plain), rel=1e-6)
    for mine, theirs in zip(grads, reference, strict=True):
        assert relative(mine, theirs) < 1e-5


def test_the_lora_forward_equals_pefts(tiny_folder, tiny_adapter_model):
    state = {name: value for name, value in tiny_adapter_model.state_dict().items() if "lora_" in name}
    plain = PeftModel(load_base(tiny_folder, FP32), tiny_adapter_model.peft_config["default"])
    plain.load_state_dict(state, strict=False)
    ids = torch.randint(3, 250, (2, 17))
    assert torch.allclose(tiny_adapter_model(ids).logits, plain(ids).logits, atol=1e-5)
    with tiny_adapter_model.disable_adapter(), plain.disable_adapter():
        assert torch.equal(tiny_adapter_model(ids).logits, plain(ids).logits)


@pytest.mark.parametrize("micro_batch_tokens", [1, 100, 400, 4000])
def test_held_out_loss_is_the_same_for_any_batch(tiny_adapter_model, micro_batch_tokens):
    examples = make_examples(9, seed=6)
    loss_function = LossFunction(tiny_adapter_model)
    reference, tokens = held_out_loss(loss_function, examples, 1)
    loss, same_tokens = held_out_loss(loss_function, examples, micro_batch_tokens)
    assert tokens == same_tokens == sum(example.trained_tokens for example in examples)
    assert loss == pytest.approx(reference, abs=1e-5)


def test_evaluation_that_runs_out_of_memory_is_cut_smaller_and_says_the_same(tiny_adapter_model):
    examples = make_examples(9, seed=6)
    loss_function = LossFunction(tiny_adapter_model)
    reference, _ = held_out_loss(loss_function, examples, 4000)
    sizes: list[int] = []

    class Small:
        head = loss_function.head

        def __call__(self, ids, labels):
            sizes.append(len(ids))
            if len(ids) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return loss_function(ids, labels)

    loss, _ = held_out_loss(Small(), examples, 4000)
    assert loss == pytest.approx(reference, abs=1e-5) and max(sizes) == 9 and sizes.count(9) == 1


class Recorder:
    """Collects events and answers `asked` from a schedule of steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.events: list[ev.Event] = []
        self.stop_after = stop_after

    def emit(self, event: ev.Event) -> None:
        self.events.append(event)

    def asked(self):
        return "stop" if self.stop_after is not None and len(self.losses) >= self.stop_after else ""

    @property
    def losses(self) -> list[float]:
        return [event.loss for event in self.events if isinstance(event, ev.StepLogged)]

    def of(self, kind: type[ev.Event]) -> list[ev.Event]:
        return [event for event in self.events if isinstance(event, kind)]


def setup(model, folder, plan=None, held_out=(), rows=12, **changes) -> loop.Setup:
    folder.mkdir(exist_ok=True)
    values = {"optim__batch_tokens": 120, "optim__epochs": 2, "optim__learning_rate": 5e-3, "optim__optimizer": "adamw"}
    config = make_config(**{**values, **changes})
    return loop.Setup(
        config, plan or make_plan(200), model, make_examples(rows, seed=7), list(held_out), folder, "tiny/base", "abc"
    )


def test_a_run_learns_evaluates_and_leaves_an_adapter_that_peft_loads(tiny_folder, tiny_adapter_model, tmp_path):
    recorder = Recorder()
    outcome = loop.train(
        setup(tiny_adapter_model, tmp_path / "run", held_out=make_examples(4, seed=8)), recorder.emit, recorder.asked
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
    outcome = loop.train(setup(tiny_adapter_model, tmp_path / "run"), recorder.emit, recorder.asked)
    assert outcome.stopped and outcome.step == 2 == len(recorder.losses)
    assert find_damage(tmp_path / "run" / "adapter") == ""


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
@pytest.mark.parametrize("cut", [1, 3, 5])
def test_a_stopped_run_goes_on_with_the_identical_curve(tiny_folder, tmp_path, optimizer, cut):
    changes = {"lora__dropout": 0.2, "optim__schedule": "linear", "optim__warmup_share": 0.2}

    def run(folder, stop_after=None, resume=None):
        model = attach_adapter(load_base(tiny_folder, FP32), LoraSettings(rank=32, dropout=0.2), torch.float32, seed=1)
        recorder = Recorder(stop_after)
        made = setup(model, folder, make_plan(200, optimizer), held_out=make_examples(2, seed=9), **changes)
        loop.train(dataclasses.replace(made, resume=resume), recorder.emit, recorder.asked)
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
    loop.train(setup(tiny_adapter_model, tmp_path / "run"), recorder.emit, recorder.asked)
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

    def __call__(self, inner, ids, labels):
        loss = inner(ids, labels)
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


def test_a_hundred_out_of_memories_lose_no_step_and_change_no_loss(tiny_folder, tmp_path, monkeypatch):
    original = LossFunction.__call__

    def run(folder, faults):
        monkeypatch.setattr(
            LossFunction,
            "__call__",
            lambda self, ids, labels: faults(lambda *both: original(self, *both), ids, labels),
        )
        model = attach_adapter(load_base(tiny_folder, FP32), LoraSettings(rank=4), torch.float32, seed=1)
        recorder = Recorder()
        loop.train(setup(model, folder, make_plan(4096), rows=24), recorder.emit, recorder.asked)
        return recorder

    whole = run(tmp_path / "whole", Faults(0, 0))
    raised, seed = 0, 0
    while raised < 100:
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
    original = LossFunction.__call__

    def fail_from_step_two(self, ids, labels):
        if len(recorder.losses) >= 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(self, ids, labels)

    monkeypatch.setattr(LossFunction, "__call__", fail_from_step_two)
    recorder = Recorder()
    with pytest.raises(StudioError, match=r"One row of \d+ tokens does not fit: \d+\.\d\d GiB were in use"):
        loop.train(setup(tiny_adapter_model, tmp_path / "run"), recorder.emit, recorder.asked)
    checkpoint, _ = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None and checkpoint.name == "step-000002"


def test_an_8_bit_optimizer_learns_too(tiny_adapter_model, tmp_path):
    recorder = Recorder()
    loop.train(setup(tiny_adapter_model, tmp_path / "run", make_plan(200, "adamw_8bit")), recorder.emit, recorder.asked)
    assert recorder.losses[-1] < recorder.losses[0]


def test_an_update_that_is_not_finite_is_refused_and_three_in_a_row_end_the_run(
    tiny_adapter_model, tmp_path, monkeypatch
):
    before = {name: value.clone() for name, value in tiny_adapter_model.state_dict().items() if "lora_" in name}
    monkeypatch.setattr(loop._Training, "_accumulate", lambda self, step: torch.tensor(float("nan")))
    recorder = Recorder()
    with pytest.raises(StudioError, match="3 updates in a row were not finite"):
        loop.train(setup(tiny_adapter_model, tmp_path / "run"), recorder.emit, recorder.asked)
    assert len(recorder.of(ev.UpdateSkipped)) == 3
    for name, value in tiny_adapter_model.state_dict().items():
        if "lora_" in name:
            assert torch.equal(value, before[name])


def test_an_adapter_of_another_base_is_refused_by_name(tiny_adapter_model, tiny_folder, tmp_path):
    recorder = Recorder()
    loop.train(setup(tiny_adapter_model, tmp_path / "run"), recorder.emit, recorder.asked)
    file = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    from safetensors.torch import load_file, save_file

    state = load_file(file)
    state.pop(next(iter(state)))
    save_file(state, file)
    with pytest.raises(StudioError, match="made for another base: 1 weights do not match"):
        load_adapter(load_base(tiny_folder, FP32), tmp_path / "run" / "adapter")
    assert "adapter_model.safetensors is missing or of another size" in find_damage(tmp_path / "run" / "adapter")


def test_a_row_of_one_token_trains_nothing_and_breaks_nothing(tiny_adapter_model):
    loss = LossFunction(tiny_adapter_model)(*collate([Example((5,), ((0, 1),))], torch.device("cpu")))
    assert float(loss.detach()) == 0.0


def test_an_architecture_without_fused_attention_and_with_capped_logits_trains_too(tmp_path):
    """Gemma 2: eager attention, and logits that are capped after the head, so the model's own loss is used."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Gemma2Config(
        vocab_size=256, num_key_value_heads=2, head_dim=16, initializer_range=0.5, final_logit_softcapping=5.0, **sizes
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, attn_implementation="eager").save_pretrained(tmp_path / "base")
    model = attach_adapter(load_base(tmp_path / "base", FP32), LoraSettings(rank=4), torch.float32, seed=1)
    assert not LossFunction(model).chunked
    examples = make_examples(8, seed=3)
    assert relative(gradients(model, examples, 10_000), gradients(model, examples, 1)) < 1e-5
