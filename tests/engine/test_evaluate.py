"""Held-out loss: the same for any micro-batch, also when memory runs out in the middle."""

from __future__ import annotations

import pytest
import torch

from qlora_studio.core.errors import StudioError
from qlora_studio.engine.evaluate import evaluate
from qlora_studio.engine.forward import LossFunction
from qlora_studio.engine.ladder import Limits, MemoryLadder
from qlora_studio.engine.objectives.supervised import Supervised
from tests.engine.conftest import FP32, make_examples
from tests.matrix import mostly_slow


def ladder(model, tokens, report=lambda descent: None):
    return MemoryLadder(model, FP32.accelerator, Limits(tokens, 0, 2), report)


@pytest.mark.parametrize("tokens", mostly_slow([1, 100, 400, 4000], 1, 400))
def test_evaluation_loss_is_the_mean_over_all_trained_tokens_for_any_micro_batch(tiny_adapter_model, tokens):
    examples = make_examples(9, seed=6)
    loss_function = LossFunction(tiny_adapter_model)
    with torch.no_grad():
        alone = [
            evaluate(Supervised(), loss_function, [example], ladder(tiny_adapter_model, 1)) for example in examples
        ]
    trained = [example.trained_tokens for example in examples]
    mean = sum(loss * count for loss, count in zip(alone, trained, strict=True)) / sum(trained)
    seen: list[tuple[int, int]] = []
    loss = evaluate(
        Supervised(), loss_function, examples, ladder(tiny_adapter_model, tokens), lambda *both: seen.append(both)
    )
    assert loss == pytest.approx(mean, abs=1e-5)
    assert seen[-1] == (9, 9) and seen == sorted(seen)


class Small:
    """A loss that runs out of memory above so many tokens, padding included, and notes every row it computed."""

    def __init__(self, loss_function: LossFunction, most: int) -> None:
        self.loss_function, self.most, self.layout = loss_function, most, loss_function.layout
        self.done: list[int] = []
        self.failed: list[int] = []
        """Tokens of the micro-batches that did not fit."""

    def row_losses(self, batch):
        if batch.ids.numel() > self.most:
            self.failed.append(batch.ids.numel())
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.done += batch.rows
        return self.loss_function.row_losses(batch)


def test_out_of_memory_cuts_the_rest_smaller_and_computes_nothing_twice(tiny_adapter_model):
    examples = make_examples(9, seed=6)
    loss_function, descents = LossFunction(tiny_adapter_model), []
    reference = evaluate(Supervised(), loss_function, examples, ladder(tiny_adapter_model, 4000))
    small, way = Small(loss_function, most=150), ladder(tiny_adapter_model, 540, descents.append)
    assert evaluate(Supervised(), small, examples, way) == pytest.approx(reference, abs=1e-5)
    assert sorted(small.done) == list(range(9))
    assert [descent.limits.micro_batch_tokens for descent in descents] == [270, 135] and len(small.failed) == 2
    assert way.limits == Limits(135, 0, 2)


def test_a_row_that_does_not_fit_alone_is_an_error_in_words(tiny_adapter_model):
    examples = make_examples(3, seed=6)
    small = Small(LossFunction(tiny_adapter_model), most=0)
    longest = max(len(example.input_ids) for example in examples)
    with pytest.raises(StudioError, match=f"One row of {longest} tokens does not fit"):
        evaluate(Supervised(), small, examples, ladder(tiny_adapter_model, 400))
