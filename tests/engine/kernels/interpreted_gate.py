"""The Triton kernels of the gated MLP in Triton's interpreter. `test_triton_gate.py` runs this in a process of its own:
the interpreter is chosen before Triton is imported, for everything in the process."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from qlora_studio.engine.kernels import fused_gate, gated_mlp, triton_gate
from qlora_studio.engine.kernels.checkpointing import checkpoint_layers
from qlora_studio.engine.kernels.fused_gate import try_kernels
from qlora_studio.engine.kernels.gated_mlp import ACTIVATIONS
from qlora_studio.engine.kernels.replace import tile_mlps
from tests.engine.conftest import relative
from tests.engine.test_fast_paths import WAYS, gradient_of, load_pair, random_ids

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")
CPU, DTYPES = torch.device("cpu"), (torch.bfloat16, torch.float16, torch.float32)
LAYOUTS = ("apart", "halves", "in a larger matrix")
SIZES = [(1, 1), (3, 17), (2, 1024), (3, 2050)]
FORMULAS = {"silu": F.silu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "gelu": F.gelu}
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_activation = pytest.mark.parametrize("name", list(FORMULAS))


def draw(rows, inner, dtype, layout):
    """Gate, up and the gradient of their product, and the matrix around the first two."""
    generator = torch.Generator().manual_seed(rows * inner)
    inside = torch.randn(rows, inner, generator=generator).mul_(2).to(dtype)
    around = torch.randn(rows + 2, 2 * inner + 7, generator=generator).mul_(3).to(dtype)
    if layout == "in a larger matrix":
        whole = around[1:-1, 3:-4]
    else:
        whole = around[1:-1, 3:-4].contiguous()
    gate, up = whole.chunk(2, dim=-1)
    return (gate.contiguous(), up.contiguous(), inside, around) if layout == "apart" else (gate, up, inside, around)


def differentiate(name, gate, up, inside):
    """act(gate) · up and its gradients in fp64, by autograd."""
    gate, up = (one.detach().double().requires_grad_() for one in (gate, up))
    product = FORMULAS[name](gate) * up
    return product.detach(), *torch.autograd.grad(product, (gate, up), inside.double())


def assert_rounded_once(found, wanted):
    """Half a step of the dtype, a whole one in bf16, which the interpreter cuts off, and what fp32 arithmetic adds."""
    step = torch.finfo(found.dtype).eps * (1 if found.dtype == torch.bfloat16 else 0.5)
    assert ((found.double() - wanted).abs() <= 1.01 * step * wanted.abs() + 2e-6 * (1 + wanted.abs())).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@every_dtype
@every_activation
def test_numbers_are_those_of_autograd_in_fp64_rounded_once(name, dtype, size, layout):
    gate, up, inside, around = draw(*size, dtype, layout)
    outside, kept = around.clone(), inside.clone()
    product, gate_gradient, up_gradient = differentiate(name, gate, up, inside)
    assert_rounded_once(triton_gate.product(gate, up, name), product)
    triton_gate.gradients_(inside, gate, up, name)
    assert_rounded_once(gate, gate_gradient)
    assert_rounded_once(up, up_gradient)
    assert torch.equal(inside, kept)
    for part in (slice(0, 1), slice(-1, None)):
        assert torch.equal(around[part], outside[part])
    for part in (slice(0, 3), slice(-4, None)):
        assert torch.equal(around[:, part], outside[:, part])


@every_dtype
@every_activation
def test_numbers_far_from_zero_stay_finite_and_right(name, dtype):
    far = [0.0, -0.0, 1e-4, -1e-4, 9.0, -9.0, 60.0, -60.0, 1e4, -1e4]
    gate = torch.tensor([far]).to(dtype)
    up, inside = torch.full_like(gate, 2.0), torch.full_like(gate, 0.5)
    product, gate_gradient, up_gradient = differentiate(name, gate, up, inside)
    assert_rounded_once(triton_gate.product(gate, up, name), product)
    triton_gate.gradients_(inside, gate, up, name)
    assert_rounded_once(gate, gate_gradient)
    assert_rounded_once(up, up_gradient)


class Exchanged:
    """The real kernels, the gradients of gate and up in each other's place."""

    product = staticmethod(triton_gate.product)

    @staticmethod
    def gradients_(inside, gate, up, name):
        triton_gate.gradients_(inside, gate, up, name)
        both = gate.clone(), up.clone()
        up.copy_(both[0]), gate.copy_(both[1])


class WrongWay(Exchanged):
    """The real kernel, told that gate is up."""

    @staticmethod
    def gradients_(inside, gate, up, name):
        triton_gate.gradients_(inside, up, gate, name)


@every_dtype
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda one: one.name)
def test_the_trial_takes_these_kernels_and_refuses_broken_ones(activation, dtype):
    assert try_kernels(activation, CPU, dtype) is triton_gate
    for broken in (Exchanged, WrongWay):
        assert try_kernels(activation, CPU, dtype, broken) == "Triton's kernels give other numbers"


def counted(kernel, launched):
    inner = getattr(triton_gate, kernel)

    def launch(*arguments):
        launched.append(kernel)
        return inner(*arguments)

    return launch


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma"])
def test_a_model_has_the_gradients_of_transformers_and_peft(family, tmp_path, monkeypatch):
    monkeypatch.setattr(fused_gate, "FUSED_ON", ("cpu",))
    monkeypatch.setattr(gated_mlp, "ROWS_AT_ONCE", {"cpu": 4})
    monkeypatch.setattr(gated_mlp, "TILE", 8)
    ours, plain = load_pair(family, tmp_path, torch.float32)
    ids, launched = random_ids(1, 10), []
    wanted = gradient_of(plain, ids)
    for kernel in ("product", "gradients_"):
        monkeypatch.setattr(triton_gate, kernel, counted(kernel, launched))
    for checkpointed, tiled in WAYS.values():
        checkpoint_layers(ours, checkpointed)
        tile_mlps(ours, tiled)
        launched.clear()
        assert relative(gradient_of(ours, ids), wanted) < 1e-5
        assert launched.count("product") >= 4 * 3 * 2 and launched.count("gradients_") >= 4 * 3  # layers, blocks
