"""The gradient of a step: the same however it is cut, checkpointed, offloaded or tried again, dropout included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from qlora_studio.core.config import LoraSettings
from qlora_studio.engine.accumulator import Accumulator, StepRows
from qlora_studio.engine.batches import Layout
from qlora_studio.engine.forward import LossFunction
from qlora_studio.engine.ladder import Limits, MemoryLadder
from qlora_studio.engine.load import attach_adapter, load_base
from qlora_studio.engine.objectives.protocol import ObjectiveLoss, RowLosses
from qlora_studio.engine.objectives.supervised import Supervised
from tests.engine.conftest import FP32, make_examples, relative
from tests.matrix import mostly_slow

WHOLE = 10_000


def make_accumulator(
    model, examples, tokens=WHOLE, checkpointed=0, offload=False, objective=None, pack=True
) -> Accumulator:
    model.train()
    model.zero_grad(set_to_none=True)
    ladder = MemoryLadder(model, FP32.accelerator, Limits(tokens, checkpointed, 2), offload=offload)
    return Accumulator(objective or Supervised(), LossFunction(model, pack=pack), examples, ladder, seed=42)


def gradient_of(model) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def accumulate(model, examples, *, step=1, **how) -> tuple[float, torch.Tensor]:
    """Loss and gradient of all examples as one step."""
    sums = make_accumulator(model, examples, **how).add_gradients(StepRows(tuple(range(len(examples))), step))
    return float(sums.loss), gradient_of(model)


def test_loss_and_gradient_are_the_mean_over_all_trained_tokens(tiny_adapter_model):
    examples = make_examples(3, seed=3)
    loss, gradient = accumulate(tiny_adapter_model, examples, tokens=1)
    tiny_adapter_model.zero_grad(set_to_none=True)
    batch = Layout(torch.device("cpu")).collate(examples, range(3))
    logits = tiny_adapter_model(batch.ids).logits.flatten(0, 1)[batch.targets.places]
    mean = torch.nn.functional.cross_entropy(logits, batch.targets.tokens)
    mean.backward()
    assert loss == pytest.approx(float(mean), rel=1e-6)
    assert relative(gradient, gradient_of(tiny_adapter_model)) < 1e-5


@pytest.mark.parametrize("tokens", mostly_slow([60, 90, 150, WHOLE], 60, WHOLE))
def test_the_gradient_does_not_depend_on_the_micro_batches(tiny_adapter_model, tokens):
    examples = make_examples(8, seed=3)
    loss, gradient = accumulate(tiny_adapter_model, examples, tokens=1)
    other_loss, other = accumulate(tiny_adapter_model, examples, tokens=tokens)
    assert other_loss == pytest.approx(loss, rel=1e-6) and relative(other, gradient) < 1e-5


@pytest.mark.parametrize("tokens", [60, 130, WHOLE])
def test_packed_and_padded_rows_have_the_same_gradient(tiny_adapter_model, tokens):
    examples = make_examples(8, seed=3)
    loss, gradient = accumulate(tiny_adapter_model, examples, tokens=tokens, pack=False)
    packed_loss, packed = accumulate(tiny_adapter_model, examples, tokens=tokens)
    assert packed_loss == pytest.approx(loss, rel=1e-6) and relative(packed, gradient) < 1e-5


@pytest.mark.parametrize("offload", [False, True], ids=["here", "offloaded"])
@pytest.mark.parametrize("checkpointed", mostly_slow([1, 2], 2))
def test_gradient_checkpointing_gives_the_same_gradient(tiny_adapter_model, checkpointed, offload):
    examples = make_examples(4, seed=4)
    _, reference = accumulate(tiny_adapter_model, examples)
    _, gradient = accumulate(tiny_adapter_model, examples, checkpointed=checkpointed, offload=offload)
    assert relative(gradient, reference) < 1e-6


def test_what_goes_backward_is_scaled_and_what_is_reported_is_not(tiny_adapter_model):
    examples = make_examples(3, seed=4)
    loss, gradient = accumulate(tiny_adapter_model, examples)
    accumulator = make_accumulator(tiny_adapter_model, examples)
    sums = accumulator.add_gradients(StepRows((0, 1, 2), 1), lambda part: 8 * part)
    assert float(sums.loss) == loss
    assert relative(gradient_of(tiny_adapter_model), 8 * gradient) < 1e-6


@pytest.fixture
def model_with_dropout(tiny_folder):
    model = attach_adapter(load_base(tiny_folder, FP32), LoraSettings(rank=8, dropout=0.3), torch.float32, seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    return model


@pytest.mark.parametrize(
    "how",
    mostly_slow(
        [{"tokens": 60}, {"tokens": 130}, {"tokens": 130, "checkpointed": 2}, {"pack": False}],
        {"tokens": 130, "checkpointed": 2},
        {"pack": False},
    ),
    ids=["rows", "some", "checkpointed", "padded"],
)
def test_dropout_is_the_same_however_a_step_is_cut(model_with_dropout, how):
    examples = make_examples(8, seed=3)
    loss, gradient = accumulate(model_with_dropout, examples)
    torch.manual_seed(99)  # torch's own stream has no part in it
    other_loss, other = accumulate(model_with_dropout, examples, **how)
    assert other_loss == pytest.approx(loss, rel=1e-6) and relative(other, gradient) < 1e-5


def test_dropout_differs_by_step_row_and_layer_and_keeps_its_share(model_with_dropout):
    examples = [make_examples(1, seed=3)[0]] * 2
    first, _ = accumulate(model_with_dropout, examples, step=1)
    assert accumulate(model_with_dropout, examples, step=2)[0] != first
    accumulator = make_accumulator(model_with_dropout, examples)
    with torch.no_grad():
        same, copy = accumulator._row_losses(StepRows((0, 1), 1), (0, 1)).tolist()
    assert same != copy
    seeds = accumulator.row_seeds
    x = torch.ones(seeds.spans[-1][1], 4096)
    one, two = seeds.keep_mask(x, 0, 0.7), seeds.keep_mask(x, 1, 0.7)
    assert not torch.equal(one, two) and one.float().mean().item() == pytest.approx(0.7, abs=0.01)


def test_dropout_keeps_the_mean_and_is_off_in_evaluation(model_with_dropout):
    (dropout, *_) = [module for module in model_with_dropout.modules() if type(module).__name__ == "RowDropout"]
    examples = make_examples(1, seed=3, shortest=60)
    make_accumulator(model_with_dropout, examples).add_gradients(StepRows((0,), 1))
    x = torch.ones(60, 4096)
    assert dropout(x).unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert dropout(x).mean().item() == pytest.approx(1, abs=0.01)
    assert dropout.eval()(x) is x


@dataclass(frozen=True)
class Pairs:
    """A preference objective as small as one can be: the first row of a pair should be likelier than the second."""

    name = "pairs"
    unit = "pair"
    couples_rows = True

    def units(self, rows: int) -> Sequence[tuple[int, ...]]:
        return [(row, row + 1) for row in range(0, rows, 2)]

    def divisor(self, examples) -> float:
        return len(examples) / 2

    def loss(self, rows: RowLosses) -> ObjectiveLoss:
        mean = rows.losses / rows.trained_tokens
        margins = mean[1::2] - mean[0::2]
        return ObjectiveLoss(
            -torch.nn.functional.logsigmoid(2 * margins).sum(), {"accuracy": (margins > 0).float().sum()}
        )


@pytest.mark.parametrize("tokens", mostly_slow([1, 90, WHOLE], 90))
def test_rows_of_a_pair_may_stand_in_different_micro_batches(model_with_dropout, tokens):
    examples = make_examples(6, seed=3)
    accumulator = make_accumulator(model_with_dropout, examples, tokens=tokens, objective=Pairs())
    sums = accumulator.add_gradients(StepRows(tuple(range(6)), 1))
    gradient = gradient_of(model_with_dropout)
    model_with_dropout.zero_grad(set_to_none=True)
    together = accumulator._row_losses(StepRows(tuple(range(6)), 1), range(6))
    trained = torch.tensor([float(example.trained_tokens) for example in examples])
    reference = Pairs().loss(RowLosses(tuple(range(6)), together, trained))
    (reference.summed / 3).backward()
    assert float(sums.loss) == pytest.approx(float(reference.summed) / 3, rel=1e-6)
    assert float(sums.metrics["accuracy"]) == pytest.approx(float(reference.metrics["accuracy"]) / 3)
    assert relative(gradient, gradient_of(model_with_dropout)) < 1e-5


@dataclass(frozen=True)
class WithMetric(Supervised):
    def loss(self, rows: RowLosses) -> ObjectiveLoss:
        return ObjectiveLoss(rows.losses.sum(), {"tokens": rows.trained_tokens.sum()})


def test_metrics_are_summed_over_micro_batches_and_divided_like_the_loss(tiny_adapter_model):
    examples = make_examples(4, seed=3)
    accumulator = make_accumulator(tiny_adapter_model, examples, tokens=1, objective=WithMetric())
    assert float(accumulator.add_gradients(StepRows((0, 1, 2, 3), 1)).metrics["tokens"]) == pytest.approx(1)
