"""The loop: exact whatever the cutting, stoppable, and never worse for a number that is not finite."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel

from qlora_studio.core import events as ev
from qlora_studio.core.errors import StudioError
from qlora_studio.core.example import Example
from qlora_studio.engine import train as loop
from qlora_studio.engine.batches import collate, micro_batches
from qlora_studio.engine.checkpoint import find_damage
from qlora_studio.engine.evaluate import held_out_loss
from qlora_studio.engine.forward import LossFunction
from qlora_studio.engine.kernels.checkpointing import checkpoint_layers
from qlora_studio.engine.load import load_adapter, load_base
from tests.engine.conftest import FP32, make_config, make_examples, make_plan


def gradients(model, examples, micro_batch_tokens: int, checkpointed: int = 0) -> torch.Tensor:
    """The gradient of the mean loss over all trained tokens, whatever the micro-batches."""
    model.train()
    model.zero_grad(set_to_none=True)
    checkpoint_layers(model, checkpointed)
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
