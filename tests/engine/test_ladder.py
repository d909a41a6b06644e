"""The out-of-memory ladder: which rung comes next, and what the work finds when it is tried again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qlora_studio.core.config import LoraSettings
from qlora_studio.core.errors import StudioError
from qlora_studio.engine import ladder as ladder_module
from qlora_studio.engine.accelerator.cpu import CpuAccelerator
from qlora_studio.engine.accelerator.protocol import Peak
from qlora_studio.engine.kernels import gated_mlp
from qlora_studio.engine.kernels.checkpointing import decoder_layers
from qlora_studio.engine.kernels.offloading import Offloading
from qlora_studio.engine.ladder import Descent, Limits, MemoryLadder, planned_limits, smaller_limits
from qlora_studio.engine.load import attach_adapter, load_base
from tests.engine.conftest import FP32, make_plan


def test_micro_batches_are_halved_down_to_the_longest_row_then_more_layers_are_checkpointed():
    limits, descents = Limits(2048, 0, 30), []
    while (found := smaller_limits(limits, longest=700)) is not None:
        limits, words = found
        descents.append((limits.micro_batch_tokens, limits.checkpointed_layers, words))
    assert descents == [
        (1024, 0, "a micro-batch of 1024 instead of 2048 tokens"),
        (700, 0, "a micro-batch of 700 instead of 1024 tokens"),
        (700, 8, "gradient checkpointing on 8 instead of 0 of 30 layers"),
        (700, 16, "gradient checkpointing on 16 instead of 8 of 30 layers"),
        (700, 24, "gradient checkpointing on 24 instead of 16 of 30 layers"),
        (700, 30, "gradient checkpointing on 30 instead of 24 of 30 layers"),
    ]


def test_a_row_longer_than_the_micro_batch_leaves_only_gradient_checkpointing():
    assert smaller_limits(Limits(512, 4, 4), longest=900) is None
    assert smaller_limits(Limits(512, 3, 4), longest=900) == (
        Limits(512, 4, 4),
        "gradient checkpointing on 4 instead of 3 of 4 layers",
    )


def test_the_last_rung_is_tiles_where_a_row_is_longer_than_one():
    last = Limits(2000, 4, 4, can_tile=True)
    assert smaller_limits(last, longest=2000) == (replace(last, tiled_mlp=True), "MLPs in tiles of 1024 tokens")
    assert smaller_limits(replace(last, tiled_mlp=True), longest=2000) is None
    assert smaller_limits(Limits(1024, 4, 4, can_tile=True), longest=1024) is None
    assert smaller_limits(Limits(2000, 4, 4), longest=2000) is None
    assert smaller_limits(last, longest=2000, backward=False) is None
    assert Limits(2000, 4, 4, can_tile=True).smaller_of(replace(last, tiled_mlp=True)).tiled_mlp
    assert not Limits(2000, 4, 4).smaller_of(replace(last, tiled_mlp=True)).tiled_mlp


def test_tiles_are_a_rung_only_for_mlps_that_can_be_computed_so(tiny_folder, tiny_adapter_model):
    plan = make_plan(100)
    assert planned_limits(plan, tiny_adapter_model.train()) == Limits(100, 0, 2, can_tile=True)
    for lora in (LoraSettings(rank=4, dropout=0.1), LoraSettings(rank=4, use_dora=True)):
        model = attach_adapter(load_base(tiny_folder, FP32), lora, torch.float32, seed=1).train()
        assert planned_limits(plan, model) == Limits(100, 0, 2)


def test_the_rung_of_tiles_computes_the_same_step_in_tiles(tiny_adapter_model, monkeypatch):
    """Gradients are those without tiles, and every MLP is in tiles then."""
    monkeypatch.setattr(ladder_module, "TILE", 16)
    monkeypatch.setattr(gated_mlp, "TILE", 16)
    model = tiny_adapter_model.train()
    ids = torch.arange(3, 53).unsqueeze(0)
    errors = [torch.OutOfMemoryError("CUDA out of memory.")]

    def work(limits):
        if gone and errors:
            raise errors.pop()
        model(ids).logits.float().square().mean().backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]

    gone, limits = False, Limits(50, 2, 2, can_tile=True)
    wanted = MemoryLadder(model, FP32.accelerator, limits).until_it_fits(work, longest=50)
    model.zero_grad()
    gone, descents = True, []
    ladder = MemoryLadder(model, FP32.accelerator, limits, descents.append)
    found = ladder.until_it_fits(work, longest=50)
    assert [descent.change for descent in descents] == ["MLPs in tiles of 16 tokens"] and ladder.limits.tiled_mlp
    assert {module.tiled for module in model.modules() if hasattr(module, "tiled")} == {True}
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-7)


def test_without_a_backward_pass_gradient_checkpointing_is_no_rung():
    assert smaller_limits(Limits(700, 0, 4), longest=700, backward=False) is None
    assert smaller_limits(Limits(701, 0, 4), longest=700, backward=False) is not None


def test_the_smaller_of_two_limits_is_taken_in_each_respect():
    assert Limits(512, 1, 4).smaller_of(Limits(1024, 3, 4)) == Limits(512, 3, 4)
    assert Limits(1024, 3, 4).smaller_of(Limits(512, 1, 4)) == Limits(512, 3, 4)
    assert Limits(512, 0, 2).smaller_of(Limits(512, 9, 9)) == Limits(512, 2, 2)


class Work:
    """Fails so many times, leaving gradients and drawn random numbers behind, then answers with what it found."""

    def __init__(self, model, failures: int, error: Exception) -> None:
        self.model, self.failures, self.error = model, failures, error
        self.seen: list[tuple[Limits, int, float]] = []

    def __call__(self, limits: Limits) -> str:
        gradients = sum(parameter.grad is not None for parameter in self.model.parameters())
        self.seen.append((limits, gradients, torch.rand(1).item()))
        next(p for p in self.model.parameters() if p.requires_grad).grad = torch.zeros(1).expand(4, 64).clone()
        if len(self.seen) <= self.failures:
            raise self.error
        return "done"


def test_work_is_tried_again_with_the_same_random_numbers_no_gradients_and_the_next_limits(tiny_adapter_model):
    descents: list[Descent] = []
    ladder = MemoryLadder(tiny_adapter_model, FP32.accelerator, Limits(400, 0, 2), descents.append)
    work = Work(tiny_adapter_model, 3, torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"))
    assert ladder.until_it_fits(work, longest=100) == "done"
    limits, gradients, numbers = zip(*work.seen, strict=True)
    assert limits == (Limits(400, 0, 2), Limits(200, 0, 2), Limits(100, 0, 2), Limits(100, 1, 2))
    assert gradients == (0, 0, 0, 0) and len(set(numbers)) == 1
    assert ladder.limits == limits[-1] and [descent.limits for descent in descents] == list(limits[1:])
    assert descents[0] == Descent(
        Limits(200, 0, 2), "a micro-batch of 200 instead of 400 tokens", "CUDA out of memory."
    )
    assert [layer.gradient_checkpointing for layer in decoder_layers(tiny_adapter_model)] == [True, False]


@pytest.mark.parametrize("offload", [False, True], ids=["here", "offloaded"])
def test_checkpointed_inputs_are_offloaded_only_where_the_plan_says_so(tiny_adapter_model, offload, monkeypatch):
    sent: list[torch.Tensor] = []
    plain = Offloading._send
    monkeypatch.setattr(Offloading, "_send", lambda self, tensor: (sent.append(tensor), plain(self, tensor))[1])
    how = {"offload": True} if offload else {}
    MemoryLadder(tiny_adapter_model.train(), FP32.accelerator, Limits(100, 2, 2), **how)
    tiny_adapter_model(torch.arange(3, 9).unsqueeze(0))
    assert len(sent) == (2 if offload else 0)


def test_at_the_bottom_one_sentence_names_the_row(tiny_adapter_model, monkeypatch):
    ladder = MemoryLadder(tiny_adapter_model, FP32.accelerator, Limits(100, 2, 2))
    monkeypatch.setattr(CpuAccelerator, "peak", lambda self: Peak(5 << 28, 9 << 30))
    with pytest.raises(StudioError) as refused:
        ladder.until_it_fits(Work(tiny_adapter_model, 1, MemoryError()), longest=150)
    assert refused.value.problems[0].message == (
        "One row of 150 tokens does not fit: 1.25 GiB were in use when memory ran out."
    )


def test_any_other_error_passes_at_once_and_leaves_the_random_state_as_it_was(tiny_adapter_model):
    ladder = MemoryLadder(tiny_adapter_model, FP32.accelerator, Limits(400, 0, 2))
    work = Work(tiny_adapter_model, 9, ValueError("shapes"))
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="shapes"):
        ladder.until_it_fits(work, longest=100)
    assert len(work.seen) == 1 and torch.equal(torch.get_rng_state(), before)


def test_what_a_failed_try_held_is_gone_before_the_next_one(tiny_adapter_model, monkeypatch):
    order = []
    monkeypatch.setattr(CpuAccelerator, "release", lambda self: order.append("released"))
    ladder = MemoryLadder(tiny_adapter_model, FP32.accelerator, Limits(400, 0, 2))

    def work(limits):
        order.append(limits.micro_batch_tokens)
        if limits.micro_batch_tokens > 100:
            raise torch.OutOfMemoryError
        return "done"

    assert ladder.until_it_fits(work, longest=100) == "done"
    assert order == [400, "released", 200, "released", 100]


def test_an_error_without_words_is_named_by_its_kind(tiny_adapter_model):
    descents = []
    ladder = MemoryLadder(tiny_adapter_model, FP32.accelerator, Limits(200, 0, 2), descents.append)
    ladder.until_it_fits(Work(tiny_adapter_model, 1, MemoryError()), longest=100)
    assert [descent.reason for descent in descents] == ["MemoryError"]
