"""Saved inputs in the computer's memory: the same numbers when they come back however late copies run, and an account of it."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from qlora_studio.core.errors import StudioError
from qlora_studio.core.plan import MIB
from qlora_studio.engine.accelerator.cpu import CpuAccelerator
from qlora_studio.engine.accumulator import Accumulator, StepRows
from qlora_studio.engine.forward import LossFunction
from qlora_studio.engine.kernels import offloading
from qlora_studio.engine.kernels.checkpointing import checkpoint_layers
from qlora_studio.engine.kernels.offloading import Offloading, OnHost, sum_bits
from qlora_studio.engine.ladder import Limits, MemoryLadder
from qlora_studio.engine.objectives.supervised import Supervised
from tests.engine.conftest import make_examples


class Late(CpuAccelerator):
    """Runs every copy at the last moment that it may: when somebody waits for it, or never."""

    def __init__(self, waits=lambda number: True) -> None:
        self.begun, self.done, self.waits = 0, [], waits

    def run_beside(self, copies):
        number = self.begun
        self.begun += 1

        def wait():
            if self.waits(number) and number not in self.done:
                copies()
                self.done.append(number)

        return wait


class SomeAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3, bias=False)

    def forward(self, x):
        return self.linear(x).sin(), None


class Layer(GradientCheckpointingLayer):
    def __init__(self, log, number) -> None:
        super().__init__()
        self.attention, self.linear = SomeAttention(), nn.Linear(3, 3, bias=False)
        self.log, self.number = log, number

    def forward(self, x):
        self.log.append(f"layer {self.number}")
        x = x + self.attention(x)[0]
        return x + self.linear(x).tanh()


class Model(nn.Module):
    def __init__(self, count=4) -> None:
        super().__init__()
        self.log: list[str] = []
        self.layers = nn.ModuleList([Layer(self.log, number) for number in range(count)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def gradients(model, x):
    return torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()])


def round_trip(saved, accelerator=None):
    kept = Offloading(accelerator or CpuAccelerator())
    held, _, wait = kept._send(saved)
    wait()
    return held, kept._take(held), kept


@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 1), (4, 0), ()], ids=["whole", "one", "empty", "scalar"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_what_comes_back_is_what_was_saved(monkeypatch, shape, dtype):
    monkeypatch.setattr(offloading, "PINNED_BLOCK_BYTES", 16)  # so that few numbers make several pieces
    saved = torch.arange(torch.Size(shape).numel()).to(dtype).view(shape)
    held, found, kept = round_trip(saved)
    assert torch.equal(found, saved) and found.dtype == dtype and found.shape == saved.shape
    assert sum(piece.numel() for piece in held.pieces) == saved.numel()
    assert not kept.take_changed() and kept.take_changed() is None


def test_an_expanded_tensor_comes_back_whole():
    saved = torch.arange(6.0).view(2, 1, 3).expand(2, 4, 3).transpose(0, 1)
    assert torch.equal(round_trip(saved)[1], saved)


def test_pieces_are_put_together_in_their_order():
    pieces = (torch.tensor([1, 2]), torch.tensor([3]), torch.tensor([4, 5, 6]))
    held = OnHost(pieces, torch.Size((2, 3)), torch.device("cpu"), torch.tensor(21))
    kept = Offloading(CpuAccelerator())
    assert kept._take(held).tolist() == [[1, 2, 3], [4, 5, 6]] and not kept.take_changed()


@pytest.mark.parametrize("mib", [5, 33, 129, 514])
def test_pinned_memory_is_hardly_more_than_what_is_saved(monkeypatch, mib):
    """Blocks are rounded up to powers of two, as torch's allocator for pinned memory does."""
    pinned: list[int] = []
    empty = torch.empty

    def count(shape, *, dtype, device, pin_memory):
        assert pin_memory
        pinned.append(1 << (shape.numel() * dtype.itemsize - 1).bit_length())
        return empty(shape, dtype=dtype, device="meta")

    monkeypatch.setattr(torch, "empty", count)
    monkeypatch.setattr(CpuAccelerator, "pins_memory", True)
    saved = empty(mib * MIB // 2 + 100, dtype=torch.bfloat16, device="meta")
    Offloading(CpuAccelerator())._send(saved)
    assert 0 <= sum(pinned) - saved.nbytes < 2 * MIB


@pytest.mark.parametrize("accelerator", [CpuAccelerator(), Late()], ids=["at once", "late"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_gradient_is_the_same_however_late_copies_run(accelerator, count):
    torch.manual_seed(0)
    model, x = Model().train(), torch.randn(2, 3, requires_grad=True)
    wanted = gradients(model, x)
    kept = Offloading(accelerator)
    checkpoint_layers(model, count, kept)
    for _ in range(2):
        found = gradients(model, x)
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
        assert not kept.take_changed()


def test_an_input_is_sent_before_its_layer_and_waited_for_behind_it(monkeypatch):
    model = Model(2).train()
    kept = Offloading(CpuAccelerator())

    def run_beside(copies):
        copies()
        model.log.append("begun")
        return lambda: model.log.append("waited")

    monkeypatch.setattr(kept.accelerator, "run_beside", run_beside)
    checkpoint_layers(model, 2, kept)
    out = model(torch.randn(2, 3, requires_grad=True))
    assert model.log == ["begun", "layer 0", "waited", "begun", "layer 1", "waited"]
    model.log.clear()
    out.sum().backward()
    # the last one is fetched when it is asked for, the one before it within the backward pass of the last
    assert model.log == ["begun", "waited", "layer 1", "begun", "waited", "layer 0"]


def test_the_next_input_is_on_its_way_before_it_is_asked_for_and_not_before_the_attention(monkeypatch):
    model, events = Model(3).train(), []
    kept = Offloading(CpuAccelerator())
    fetch, take = kept._fetch, kept._take
    names: dict[int, int] = {}
    monkeypatch.setattr(kept, "_fetch", lambda held: (events.append(("fetch", names[id(held)])), fetch(held))[1])
    monkeypatch.setattr(kept, "_take", lambda held: (events.append(("take", names[id(held)])), take(held))[1])
    send = kept._send
    monkeypatch.setattr(
        kept, "_send", lambda tensor: (sent := send(tensor), names.setdefault(id(sent[0]), len(names)))[0]
    )
    checkpoint_layers(model, 3, kept)
    for number, layer in enumerate(model.layers):
        layer.linear.weight.register_hook(lambda _, number=number: events.append(("mlp", number)))
    model(torch.randn(2, 3, requires_grad=True)).sum().backward()
    assert events == [
        ("take", 2), ("fetch", 2), ("mlp", 2), ("fetch", 1),
        ("take", 1), ("mlp", 1), ("fetch", 0),
        ("take", 0), ("mlp", 0),
    ]  # fmt: skip


def test_of_a_layer_with_two_attentions_the_first_gradient_fetches_and_the_second_does_not():
    """A copy that is under way must not be let go for another one."""
    model, accelerator = Model(2).train(), Late()
    for layer in model.layers:
        layer.other = SomeAttention()
        plain = layer.linear.forward
        layer.linear.forward = lambda x, layer=layer, plain=plain: plain(layer.other(x)[0])
    checkpoint_layers(model, 2, Offloading(accelerator))
    assert [sum(len(part._forward_hooks) for part in layer.children()) for layer in model.layers] == [2, 2]
    model(torch.randn(2, 3, requires_grad=True)).sum().backward()
    assert accelerator.begun == len(accelerator.done) == 4


def test_what_is_on_its_way_is_taken_once():
    kept = Offloading(CpuAccelerator())
    held, _, _ = kept._send(torch.arange(4.0))
    kept._fetch_early(weakref.ref(held), torch.zeros(1))
    coming = held.coming
    assert coming is not None and kept._take(held) is coming[0] and held.coming is None
    assert kept._take(held) is not coming[0]


def test_nothing_stays_when_a_step_is_over_and_the_next_one_begins_anew():
    model, x = Model(2).train(), torch.randn(2, 3, requires_grad=True)
    kept = Offloading(CpuAccelerator())
    checkpoint_layers(model, 2, kept)
    sent = []
    plain = kept._send
    kept._send = lambda tensor: (found := plain(tensor), sent.append(weakref.ref(found[0])))[0]
    gradients(model, x)
    gc.collect()
    assert len(sent) == 2 and not any(one() for one in sent)
    gradients(model, x)  # what the first input was sent after is gone
    assert not kept.take_changed()


def test_an_offloaded_input_is_let_go_when_its_layer_is_computed():
    """autograd keeps the hook that sent it until the backward pass."""
    model, inputs = Model(2).train(), []
    kept = Offloading(Late())
    checkpoint_layers(model, 2, kept)
    model.layers[1].register_forward_pre_hook(lambda _, given: inputs.append(weakref.ref(given[0].untyped_storage())))
    out = model(torch.randn(2, 3, requires_grad=True))
    gc.collect()
    assert out.requires_grad and inputs[0]() is None


def test_layers_that_are_checkpointed_no_more_start_nothing():
    model, kept = Model(2).train(), Offloading(CpuAccelerator())
    for count in (2, 2, 1):
        checkpoint_layers(model, count, kept)
    assert [len(layer.attention._forward_hooks) for layer in model.layers] == [1, 0]


def test_an_error_in_a_layer_leaves_nothing_behind(monkeypatch):
    model, kept, x = Model(2).train(), Offloading(CpuAccelerator()), torch.randn(2, 3, requires_grad=True)
    checkpoint_layers(model, 2, kept)
    wanted = gradients(model, x)
    with monkeypatch.context() as patch:
        patch.setattr(model.layers[1].linear, "forward", lambda x: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(x)
    assert all(torch.equal(one, other) for one, other in zip(gradients(model, x), wanted, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int64, torch.uint8])
def test_a_sum_of_bits_notices_one_bit(dtype):
    generator = torch.Generator().manual_seed(0)
    for count in (1, 7, 8, 61):
        numbers = torch.randint(1, 100, (count + 1,), generator=generator).to(dtype)[1:]  # not where eight bytes begin
        for place in range(0, count, 9):
            other = numbers.clone()
            other.view(torch.uint8)[place * dtype.itemsize] ^= 1
            assert sum_bits(numbers) == sum_bits(numbers.clone()) != sum_bits(other)


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_a_copy_that_nobody_waited_for_is_noticed(number):
    """The first two go to the host, the others come back."""
    torch.manual_seed(0)
    model, x = Model(2).train(), torch.randn(2, 3, requires_grad=True)
    kept = Offloading(Late(lambda one: one != number))
    checkpoint_layers(model, 2, kept)
    gradients(model, x)
    assert kept.take_changed()


def test_an_input_that_its_layer_writes_over_is_noticed(monkeypatch):
    model, kept = Model(1).train(), Offloading(Late())
    checkpoint_layers(model, 1, kept)
    monkeypatch.setattr(model.layers[0].linear, "forward", lambda x: (x.data.zero_(), x)[1])
    x = torch.randn(2, 3, requires_grad=True)
    monkeypatch.setattr(model.layers[0].attention, "forward", lambda y: (x.data.zero_(), (y, None))[1])
    model(x).sum().backward()
    assert kept.take_changed()


def make_accumulator(model, accelerator) -> Accumulator:
    ladder = MemoryLadder(model.train(), accelerator, Limits(100, 2, 2), offload=True)
    return Accumulator(Supervised(), LossFunction(model), make_examples(4, seed=4), ladder, seed=1)


def test_a_step_with_a_changed_input_has_no_loss_and_is_refused(tiny_adapter_model):
    rows = StepRows((0, 1, 2, 3), 1)
    good = make_accumulator(tiny_adapter_model, Late())
    assert good.add_gradients(rows).loss.isfinite()
    good.refuse_changed()
    bad = make_accumulator(tiny_adapter_model, late := Late())
    late.waits = lambda number: number != late.begun - 1
    assert bad.add_gradients(rows).loss.isnan()
    with pytest.raises(StudioError) as refused:
        bad.refuse_changed()
    (problem,) = refused.value.problems
    assert problem.field == "memory.offload"
    assert problem.hint.startswith("Resume the run. If it comes again, start one with"), "a run keeps its settings"
    late.waits = lambda number: True
    assert bad.add_gradients(rows).loss.isfinite(), "it is said of the step that it was in"
    bad.refuse_changed()
