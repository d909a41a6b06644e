"""The norm's own arithmetic against its definition, and which modules of a model are recognised as norms of a kind."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from qlora_studio.engine.kernels import norm
from qlora_studio.engine.kernels.norm import (
    KINDS,
    NormKind,
    RmsNorm,
    as_rows,
    blocks,
    epsilon_of,
    find_kind,
    from_rows,
    has_fused_kernel,
    memory_order,
    replace_norms,
    rms_norm,
)
from qlora_studio.engine.stand_ins import without_numbers

EPS = 0.25
PLAIN, GEMMA = NormKind(0.0, True), NormKind(1.0, False)


def defined(x, weight, kind):
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * (kind.offset + weight)


@pytest.mark.parametrize("at_once", [1, 16, 33, 1 << 20])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_numbers_and_gradients_are_the_definitions_in_blocks_of_any_size(kind, at_once, monkeypatch):
    monkeypatch.setitem(norm.NUMBERS_AT_ONCE, "cpu", at_once)
    torch.manual_seed(0)
    x, weight, upstream = torch.randn(2, 3, 5, 16), torch.randn(16), torch.randn(2, 5, 3, 16)
    for view in (lambda t: t, lambda t: t.transpose(1, 2)):
        leaf, exact = x.clone().requires_grad_(), x.double().requires_grad_()
        gradient = upstream if view(x).shape == upstream.shape else upstream.transpose(1, 2)
        out = rms_norm(view(leaf), weight, EPS, kind)
        wanted = defined(view(exact), weight.double(), kind)
        torch.testing.assert_close(out, wanted.float(), rtol=1e-5, atol=1e-6)
        out.backward(gradient)
        wanted.backward(gradient.double())
        torch.testing.assert_close(leaf.grad, exact.grad.float(), rtol=1e-5, atol=1e-6)


def test_a_row_of_which_the_mean_square_and_epsilon_are_one_is_itself():
    x = torch.tensor([[1.0, -1.0, 0.5, -0.5]], dtype=torch.bfloat16)  # a mean square of 0.625
    out, scale = norm.norm_rows(x, torch.tensor([1.0, 2.0, 3.0, 4.0]).bfloat16(), 0.375, PLAIN)
    assert out.tolist() == [[1.0, -2.0, 1.5, -2.0]] and out.dtype == torch.bfloat16
    assert scale.tolist() == [[1.0]] and scale.dtype == torch.float32
    assert norm.norm_rows(x, torch.zeros(4).bfloat16(), 0.375, GEMMA)[0].tolist() == x.tolist()


def test_only_the_rows_gradient_is_given_and_the_input_is_kept_as_it_is():
    x = torch.randn(2, 3, 8).bfloat16().requires_grad_()
    weight = torch.ones(8, dtype=torch.bfloat16, requires_grad=True)
    out = RmsNorm.apply(x, weight, EPS, PLAIN)
    saved = out.grad_fn.saved_tensors
    assert saved[0].data_ptr() == x.data_ptr() and saved[1].shape == (6, 1) and saved[1].dtype == torch.float32
    out.sum().backward()
    assert weight.grad is None and x.grad is not None


def test_the_order_of_memory_is_kept_and_comes_back():
    x = torch.arange(2 * 3 * 4.0).view(2, 3, 4)
    moved = x.transpose(0, 1)  # (3, 2, 4), in memory as x
    assert memory_order(x) == [0, 1, 2] and memory_order(moved) == [1, 0, 2]
    rows = as_rows(moved, [1, 0, 2])
    assert torch.equal(rows, x.view(6, 4)) and rows.data_ptr() == x.data_ptr()
    back = from_rows(rows, moved, [1, 0, 2])
    assert torch.equal(back, moved) and back.stride() == moved.stride()
    four = torch.randn(2, 3, 5, 4).permute(2, 0, 1, 3)
    order = memory_order(four)
    assert order == [1, 2, 0, 3] and torch.equal(from_rows(as_rows(four, order), four, order), four)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [(1, [0, 1, 2, 3, 4]), (8, [0, 1, 2, 3, 4]), (16, [0, 2, 4]), (23, [0, 2, 4]), (40, [0]), (1000, [0])],
)
def test_blocks_hold_so_many_numbers_and_at_least_a_row(numbers, expected, monkeypatch):
    monkeypatch.setitem(norm.NUMBERS_AT_ONCE, "cpu", numbers)
    found = blocks(torch.empty(5, 8))
    assert [one.start for one in found] == expected
    assert [row for one in found for row in range(5)[one]] == list(range(5))


def test_a_device_of_another_kind_takes_what_a_card_takes():
    assert norm.most_numbers(torch.empty(1)) == norm.NUMBERS_AT_ONCE["cpu"]
    assert norm.most_numbers(torch.empty(1, device="meta")) == norm.NUMBERS_AT_ONCE["cuda"]


def test_one_kernel_is_for_cards_and_plain_weights(monkeypatch):
    class OnCard:
        device = torch.device("cuda", 0)

    assert has_fused_kernel(OnCard(), PLAIN) and has_fused_kernel(OnCard(), NormKind(0.0, False))
    assert not has_fused_kernel(OnCard(), GEMMA) and not has_fused_kernel(torch.ones(1), PLAIN)


def test_on_a_card_one_kernel_each_way_is_given_rows_and_keeps_its_own_scale(monkeypatch):
    """Stood in for by the same mathematics on the processor; the gradient of the weight is not wanted."""
    aten, wanted = torch.ops.aten, []

    def forward(rows, shape, weight, eps):
        wanted.append((rows.shape, shape))
        return norm.norm_rows(rows, weight, eps, PLAIN)

    def backward(gradient, rows, shape, scale, weight, mask):
        wanted.append((gradient.is_contiguous(), rows.shape, shape, scale.shape, mask))
        return norm.norm_gradient(gradient, rows, scale, weight.float()), None

    monkeypatch.setattr(norm, "has_fused_kernel", lambda x, kind: True)
    monkeypatch.setattr(aten, "_fused_rms_norm", forward)
    monkeypatch.setattr(aten, "_fused_rms_norm_backward", backward)
    x, weight = torch.randn(2, 3, 8), torch.randn(8)
    moved, exact = x.transpose(0, 1).requires_grad_(), x.transpose(0, 1).double().requires_grad_()
    out, upstream = rms_norm(moved, weight, EPS, PLAIN), torch.randn(3, 2, 8)
    (gradient,) = torch.autograd.grad(out, moved, upstream)
    reference = defined(exact, weight.double(), PLAIN)
    torch.testing.assert_close(out, reference.float())
    torch.testing.assert_close(gradient, torch.autograd.grad(reference, exact, upstream.double())[0].float())
    assert wanted == [((6, 8), [8]), (True, (6, 8), [8], (6, 1), [True, False])]


def test_few_rows_without_a_gradient_go_the_short_way_and_more_go_in_blocks(monkeypatch):
    taken = []
    monkeypatch.setitem(norm.NUMBERS_AT_ONCE, "cpu", 32)
    monkeypatch.setattr(RmsNorm, "apply", lambda *_: taken.append("long"))
    with torch.no_grad():
        rms_norm(torch.ones(2, 16), torch.ones(16), EPS, PLAIN)
        assert taken == []
        rms_norm(torch.ones(3, 16), torch.ones(16), EPS, PLAIN)
    rms_norm(torch.ones(1, 16), torch.ones(16), EPS, PLAIN)
    assert taken == ["long", "long"]


class Scaled(nn.Module):
    """A norm whose number under the root is called as a test likes."""

    def __init__(self, eps=1e-5, **more) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.eps = eps
        for name, value in more.items():
            setattr(self, name, value)

    def forward(self, x):
        normed = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps)
        return (normed * self.weight.float()).to(x.dtype)


class Centred(Scaled):
    """A layer norm is no RMS norm."""

    def forward(self, x):
        return super().forward(x - x.mean(-1, keepdim=True))


class Doubled(Scaled):
    def forward(self, x):
        return (super().forward(x), x)


class Wide(Scaled):
    def forward(self, x):
        return super().forward(x).float()


class Longer(Scaled):
    def forward(self, x):
        return torch.cat([super().forward(x)] * 2)


class Greedy(Scaled):
    def forward(self, x, second):
        return x


@pytest.mark.parametrize(
    ("norm_class", "name", "kind"),
    [
        (LlamaRMSNorm, "variance_epsilon", PLAIN),
        (GemmaRMSNorm, "eps", GEMMA),
        (Gemma3RMSNorm, "eps", GEMMA),
        (Scaled, "eps", NormKind(0.0, False)),
        (Centred, "eps", None),
        (Doubled, "eps", None),
        (Wide, "eps", None),
        (Longer, "eps", None),
        (Greedy, "eps", None),
        (LlamaRMSNorm, "eps", None),
        (nn.LayerNorm, "eps", None),
    ],
)
def test_a_kind_is_found_by_what_a_class_computes(norm_class, name, kind):
    assert find_kind(norm_class, name) == kind
    with without_numbers():
        assert find_kind(norm_class, name) == kind


def test_a_norm_has_one_vector_a_number_under_the_root_and_nothing_else():
    assert epsilon_of(Scaled(1e-5)) == 1e-5 and epsilon_of(Scaled(1)) == 1.0
    assert epsilon_of(Scaled(0.5, variance_epsilon=0.125)) == 0.125
    assert epsilon_of(Scaled("small")) is None and epsilon_of(Scaled(None)) is None
    assert epsilon_of(Scaled(weight=nn.Parameter(torch.ones(4, 4)))) is None
    assert epsilon_of(Scaled(bias=nn.Parameter(torch.ones(4)))) is None
    assert epsilon_of(nn.LayerNorm(4)) is None
    buffered = Scaled()
    buffered.register_buffer("seen", torch.zeros(1))
    assert epsilon_of(buffered) is None


def test_norms_of_a_known_kind_get_the_kernel_and_others_keep_their_forward():
    model = nn.ModuleList([LlamaRMSNorm(4, 1e-3), LlamaRMSNorm(4, 1e-2), Scaled(), Centred(), nn.Linear(4, 4)])
    model.requires_grad_(False)
    seen = []

    def kernel(x, weight, eps, kind):
        seen.append((weight, eps, kind))
        return x + 1

    assert replace_norms(model, kernel) == 3
    x = torch.randn(2, 4)
    for module in (model[0], model[1], model[2]):
        assert torch.equal(module(x), x + 1)
    assert [(weight is model[place].weight, eps, kind) for place, (weight, eps, kind) in enumerate(seen)] == [
        (True, 1e-3, PLAIN), (True, 1e-2, PLAIN), (True, 1e-5, NormKind(0.0, False)),
    ]  # fmt: skip
    assert torch.equal(model[3](x), Centred.forward(model[3], x))
    wanted = LlamaRMSNorm.forward(model[0], x.bfloat16())
    assert torch.equal(model[0](x.bfloat16()), wanted), "another format than the weight's"
    model[0].weight.requires_grad_(True)
    assert torch.equal(model[0](x), LlamaRMSNorm.forward(model[0], x)) and len(seen) == 3


def test_distances_are_relative_and_of_small_numbers_absolute():
    largest, total = norm._distance(torch.tensor([2.5, -3.0, 0.0005]), torch.tensor([2.0, -4.0, 0.0]))
    assert (largest, total) == (pytest.approx(0.5), pytest.approx(0.25 + 0.25 + 0.5))
