"""When a gated MLP's elementwise work takes kernels of its own, and when it is left to torch: with kernels that are pretended."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from qlora_studio.engine import kernels as folder
from qlora_studio.engine.kernels import fused_gate, gated_mlp, replace
from qlora_studio.engine.kernels.checkpointing import checkpoint_layers
from qlora_studio.engine.kernels.fused_gate import VARIABLE, FusedActivation, fuse, try_kernels
from qlora_studio.engine.kernels.gated_mlp import ACTIVATIONS, Activation
from qlora_studio.engine.kernels.replace import name_gate_kernels, replace_gated_mlps, tile_mlps
from tests.engine.conftest import relative
from tests.engine.fake_card import CARD, fake_card
from tests.engine.test_fast_paths import WAYS, gradient_of, load_pair, random_ids
from tests.matrix import mostly_slow

CPU, DTYPES = torch.device("cpu"), (torch.bfloat16, torch.float16, torch.float32)
SILU = ACTIVATIONS[0]


class Pretended:
    """What the kernels of `triton_gate` compute, in torch: in fp64, rounded once."""

    def __init__(self) -> None:
        self.calls = {"product": 0, "gradients_": 0}

    def product(self, gate, up, name):
        self.calls["product"] += 1
        return Activation.product(activation_of(name), gate.double(), up.double()).to(gate.dtype)

    def gradients_(self, inside, gate, up, name):
        self.calls["gradients_"] += 1
        exact = gate.double(), up.double()
        Activation.gradients_(activation_of(name), inside.double(), *exact)
        for one, wanted in zip((gate, up), exact, strict=True):
            one.data.copy_(wanted)  # autograd is told nothing, as by a kernel of another compiler


class Swapped(Pretended):
    """The gradients, each in the other's place."""

    def gradients_(self, inside, gate, up, name):
        super().gradients_(inside, gate, up, name)
        both = gate.clone(), up.clone()
        up.data.copy_(both[0]), gate.data.copy_(both[1])


class OneBlock(Pretended):
    """Forgets what lies behind the first block of a row."""

    def gradients_(self, inside, gate, up, name):
        super().gradients_(inside[:, :1024], gate[:, :1024], up[:, :1024], name)


class NoSlope(Pretended):
    """Takes the activation where its derivative belongs."""

    def gradients_(self, inside, gate, up, name):
        wanted = inside * up * activation_of(name).of(gate)
        super().gradients_(inside, gate, up, name)
        gate.data.copy_(wanted)


class OtherActivation(Pretended):
    """Another activation than it is called."""

    def product(self, gate, up, name):
        return super().product(gate, up, {"silu": "gelu", "gelu": "gelu_tanh", "gelu_tanh": "gelu"}[name])


class Unwritten(Pretended):
    """Leaves a number where nothing was computed."""

    def product(self, gate, up, name):
        out = super().product(gate, up, name)
        out[-1, -1] = float("nan")
        return out


def activation_of(name) -> Activation:
    return next(one for one in ACTIVATIONS if one.name == name)


def fail(error):
    def load():
        raise error

    return load


@pytest.fixture
def on_cpu(monkeypatch):
    """As if this processor were a card with Triton."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(fused_gate, "FUSED_ON", ("cpu",))


def drawn(dtype=torch.float32, rows=3, inner=8):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(rows, inner, generator=generator).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda one: one.name)
def test_kernels_that_compute_the_same_are_taken(activation, dtype):
    kernels = Pretended()
    assert try_kernels(activation, CPU, dtype, lambda: kernels) is kernels
    assert kernels.calls == {"product": 1, "gradients_": 1}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", [Swapped, OneBlock, NoSlope, Unwritten])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda one: one.name)
def test_kernels_that_compute_something_else_are_refused(activation, kind, dtype):
    assert try_kernels(activation, CPU, dtype, kind) == "Triton's kernels give other numbers"


@pytest.mark.parametrize("activation", ACTIVATIONS[:1], ids=lambda one: one.name)
def test_kernels_of_another_activation_are_refused(activation):
    for dtype in DTYPES:
        assert try_kernels(activation, CPU, dtype, OtherActivation) == "Triton's kernels give other numbers"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ModuleNotFoundError("No module named 'triton'", name="triton"), "triton is not installed"),
        (ImportError("libtriton.so: no such file"), "Triton does not work here: libtriton.so: no such file"),
        (RuntimeError("Failed to find C compiler.\nSet CC."), "Triton does not work here: Failed to find C compiler."),
        (AssertionError(), "Triton does not work here: AssertionError"),
    ],
    ids=["missing", "broken", "no compiler", "wordless"],
)
def test_what_keeps_triton_from_working_is_a_reason_and_no_error(error, reason):
    assert try_kernels(SILU, CPU, torch.float32, fail(error)) == reason


def test_a_variable_leaves_triton_out(monkeypatch):
    monkeypatch.setenv(VARIABLE, "0")
    assert try_kernels(SILU, CPU, torch.float32, fail(AssertionError("imported"))) == "QLORA_STUDIO_TRITON is 0"
    monkeypatch.setenv(VARIABLE, "1")
    assert isinstance(try_kernels(SILU, CPU, torch.float32, Pretended), Pretended)


def test_short_memory_says_nothing_about_the_kernels(on_cpu):
    """The step that had none is taken again, and so is the trial."""
    tries = [fail(torch.OutOfMemoryError("none left")), Pretended]
    fused = FusedActivation(SILU.name, SILU.of, SILU.gradient, lambda: tries.pop(0)())
    gate, up, _ = drawn()
    with pytest.raises(torch.OutOfMemoryError):
        fused.product(gate, up)
    fused.product(gate, up)
    assert isinstance(fused.found[CPU, torch.float32], Pretended)


def test_they_are_tried_once_for_each_dtype(on_cpu):
    loaded: list[Pretended] = []
    fused = FusedActivation(SILU.name, SILU.of, SILU.gradient, lambda: loaded.append(Pretended()) or loaded[-1])
    for dtype in (torch.bfloat16, torch.float32, torch.bfloat16):
        gate, up, inside = drawn(dtype)
        fused.product(gate, up)
        fused.gradients_(inside, gate, up)
    assert [kernels.calls for kernels in loaded] == [{"product": 3, "gradients_": 3}, {"product": 2, "gradients_": 2}]


def test_a_processor_and_fake_tensors_never_meet_triton():
    fused = FusedActivation(SILU.name, SILU.of, SILU.gradient, fail(AssertionError("imported")))
    gate, up, inside = drawn()
    assert torch.equal(fused.product(gate, up), F.silu(gate) * up)
    fused.gradients_(inside, gate, up)
    with fake_card((8, 0)):
        gate, up, inside = (torch.empty(3, 8, device=CARD, dtype=torch.bfloat16) for _ in range(3))
        assert fused.product(gate, up).device.type == "cuda"
        fused.gradients_(inside, gate, up)
    assert fused.found == {}


def test_tensors_that_the_kernels_do_not_take_are_left_to_torch(on_cpu):
    kernels = Pretended()
    fused = FusedActivation(SILU.name, SILU.of, SILU.gradient, lambda: kernels)
    gate, up, inside = drawn()
    fused.product(gate, up)
    before = dict(kernels.calls)
    columns, row, cube = torch.randn(8, 3).t(), torch.randn(8), torch.randn(1, 3, 8)
    assert torch.equal(fused.product(columns, up), F.silu(columns) * up)
    assert torch.equal(fused.product(gate, columns), F.silu(gate) * columns)
    for other in (row, cube):
        assert torch.equal(fused.product(other, other), F.silu(other) * other)
    fused.gradients_(inside.double(), gate.double(), up)
    assert kernels.calls == before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda one: one.name)
def test_without_kernels_every_step_rounds_as_torch_does(activation, dtype):
    """What a processor trains is the same to the bit, with or without this."""
    gate, up, inside = drawn(dtype, rows=7, inner=33)
    leaf = gate.clone().requires_grad_()
    active = activation.of(leaf)
    active.backward(inside * up)
    fused = fuse(activation)
    assert torch.equal(fused.product(gate, up), active.detach() * up)
    fused.gradients_(inside.clone(), gate, up)
    assert torch.equal(up, active.detach() * inside) and torch.equal(gate, leaf.grad)


@pytest.mark.parametrize("family", mostly_slow(["llama", "phi3"], "phi3"))
def test_a_model_takes_them_each_way(family, on_cpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gated_mlp, "ROWS_AT_ONCE", {"cpu": 32})
    monkeypatch.setattr(gated_mlp, "TILE", 64)
    ours, plain = load_pair(family, tmp_path, torch.float32)
    wanted, loaded = gradient_of(plain, random_ids()), []

    def pretend(activation):
        kernels = Pretended()
        return FusedActivation(
            activation.name, activation.of, activation.gradient, lambda: loaded.append(kernels) or kernels
        )

    monkeypatch.setattr(replace, "fuse", pretend)
    assert replace_gated_mlps(ours) == 4
    counts = {}
    for way, (checkpointed, tiled) in WAYS.items():
        checkpoint_layers(ours, checkpointed)
        tile_mlps(ours, tiled)
        for kernels in loaded:
            kernels.calls.update(product=0, gradients_=0)
        assert relative(gradient_of(ours, random_ids()), wanted) < 1e-5
        counts[way] = dict(loaded[0].calls)
    assert len(loaded) == 1  # for all layers
    assert (name_gate_kernels(ours), name_gate_kernels(plain)) == ("Triton's kernels", None)
    blocks = 4 * 3  # 80 tokens
    assert counts["kept"] == {"product": 2 * blocks + 1, "gradients_": blocks + 1}  # one more to try them
    assert counts["checkpointed"] == {"product": 2 * blocks, "gradients_": blocks}
    assert counts["tiled"] == {"product": 2 * blocks, "gradients_": blocks}


def test_a_model_with_kernels_that_disagree_trains_as_without_them(on_cpu, tmp_path, monkeypatch):
    ours, _ = load_pair("llama", tmp_path, torch.bfloat16)
    with monkeypatch.context() as without:
        without.setattr(fused_gate, "FUSED_ON", ())
        wanted = gradient_of(ours, random_ids())
    monkeypatch.setattr(replace, "fuse", lambda one: FusedActivation(one.name, one.of, one.gradient, Swapped))
    replace_gated_mlps(ours)
    assert torch.equal(gradient_of(ours, random_ids()), wanted)
    assert name_gate_kernels(ours) == "torch's kernels"


def test_a_second_backward_pass_is_refused_with_them_as_well(on_cpu, tmp_path, monkeypatch):
    """Kernels that torch does not know of write where gate and up were: autograd has to be told."""
    ours, _ = load_pair("llama", tmp_path, torch.float32)
    monkeypatch.setattr(replace, "fuse", lambda one: FusedActivation(one.name, one.of, one.gradient, Pretended))
    replace_gated_mlps(ours)
    loss = ours(input_ids=random_ids(), use_cache=False).logits.float().square().mean()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_kernels_are_those_of_their_file(monkeypatch):
    """Whether or not Triton is here."""
    file = ModuleType("qlora_studio.engine.kernels.triton_gate")
    monkeypatch.setitem(sys.modules, file.__name__, file)
    monkeypatch.setattr(folder, "triton_gate", file, raising=False)
    assert fused_gate.import_kernels() is file
