"""What stands in for a model in a dry run: real modules on tensors without numbers, and stand-ins for what needs them.

Quantised layers, the experts of a mixture and the loss are replaced by functions of the same shapes that hold and let go
what the real ones do.
"""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights
from transformers.integrations.moe import ExpertsInterface
from transformers.pytorch_utils import Conv1D

from qlora_studio.engine.adapters import ADAPTER
from qlora_studio.engine.kernels.attention import OWN_ATTENTION
from qlora_studio.engine.kernels.lora import lora_forward
from qlora_studio.engine.stand_in_kernels import Marks, attention_kernel

RANK = 16
"""Rank of the adapters that stand in."""
ATTENTION = "sdpa_without_mask"
"""Name under which attention is called here: transformers makes a mask for fake tensors that real ones do without."""
EXPERTS = "planned"
"""Name under which experts are called here: which one a token goes to is a number, and fake tensors have none."""
VOCAB = 256
"""The copies' vocabulary: the loss is counted by formula."""


@contextmanager
def without_numbers() -> Iterator[None]:
    """Models made in here have shapes and storages and no numbers, and stand-ins where numbers would decide shapes."""
    AttentionInterface.register(ATTENTION, attention_kernel(Marks()))
    AttentionMaskInterface.register(ATTENTION, lambda *_, **__: None)
    ExpertsInterface.register(EXPERTS, planned_experts)
    with warnings.catch_warnings(), FakeTensorMode(), no_init_weights():
        warnings.simplefilter("ignore")
        yield


def build(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    experts = {"experts_implementation": EXPERTS} if _has_experts(config) else {}
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        config, dtype=dtype, attn_implementation=attention_of(config), **experts
    )
    model.tie_weights()  # left out where weights get no first numbers
    return model


def attention_of(config: PreTrainedConfig) -> str:
    """Under which name attention runs: the stand-in, plain where a class refuses fused kernels, else torch's own.

    The few classes that keep a table of attention classes of their own know no stand-in.
    """
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if not getattr(kind, "_supports_sdpa", True):
        return "eager"
    return "sdpa" if config.model_type in OWN_ATTENTION else ATTENTION


def _has_experts(config: PreTrainedConfig) -> bool:
    """Whether its class runs experts through an interface that a stand-in can be given to."""
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return kind is not None and bool(kind._can_set_experts_implementation())


def shorten(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """The config with fewer layers and a small vocabulary. Kinds of layers keep their order."""
    short = copy.deepcopy(config)
    text = short.get_text_config()
    text.num_hidden_layers, text.vocab_size, text.pad_token_id, text.use_cache = layers, VOCAB, None, False
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return short


def features_of(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear layer; GPT-2's Conv1D is one with its weight the other way round."""
    if isinstance(layer, Conv1D):
        return int(layer.weight.shape[0]), int(layer.weight.shape[1])
    assert isinstance(layer, nn.Linear)
    return layer.in_features, layer.out_features


class FourBitProduct(torch.autograd.Function):
    """x·Wᵀ with W dequantised for the moment, in both directions; nothing of x is saved."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: FrozenLinear) -> torch.Tensor:
        ctx.layer = layer
        return nn.functional.linear(x, layer.dense_weight(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grads[0] @ ctx.layer.dense_weight(grads[0].dtype), None


class FrozenLinear(nn.Module):
    """Stands where a linear layer will, in four bits or not."""

    bias = None

    def __init__(self, inputs: int, outputs: int, four_bit: bool) -> None:
        super().__init__()
        self.in_features, self.out_features, self.four_bit = inputs, outputs, four_bit
        size = ((inputs * outputs + 1) // 2,) if four_bit else (outputs, inputs)
        kept = torch.empty(size, dtype=torch.uint8) if four_bit else torch.empty(size)
        self.weight = nn.Parameter(kept, requires_grad=False)

    def dense_weight(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight (out, in), as it is or made for the moment."""
        if self.four_bit:
            return torch.empty(self.out_features, self.in_features, dtype=dtype)
        return self.weight.to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.four_bit:
            product: Callable[..., torch.Tensor] = FourBitProduct.apply
            return product(x, self)
        return nn.functional.linear(x, self.weight.to(x.dtype))


class AdaptedLinear(nn.Module):
    """Stands where a linear layer with an adapter will; the forward is the engine's own."""

    disable_adapters = False
    active_adapters = (ADAPTER,)

    def __init__(self, layer: nn.Module, four_bit: bool) -> None:
        super().__init__()
        inputs, outputs = features_of(layer)
        self.base_layer = FrozenLinear(inputs, outputs, four_bit)
        self.lora_A = nn.ModuleDict({ADAPTER: nn.Linear(inputs, RANK, bias=False, dtype=torch.float32)})
        self.lora_B = nn.ModuleDict({ADAPTER: nn.Linear(RANK, outputs, bias=False, dtype=torch.float32)})
        self.lora_dropout = nn.ModuleDict({ADAPTER: nn.Identity()})
        self.scaling = {ADAPTER: 1.0}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return lora_forward(self, x)  # has what the forward asks of a LoRA layer


class GroupedProduct(torch.autograd.Function):
    """Rows, each times the matrix of its expert. Keeps its input, as the kernel for cards before Ampere does.

    On a processor the rows of one expert are copied for its product, in both directions. How many choose the same one is a
    number, so that it is as many as can: each of the tokens once.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, outputs: int, tokens: int) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.tokens = tokens
        return _grouped(x, outputs, tokens)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        x, _ = ctx.saved_tensors
        return _grouped(grads[0], x.shape[-1], ctx.tokens), None, None, None


def _grouped(x: torch.Tensor, outputs: int, tokens: int) -> torch.Tensor:
    """(rows, inputs) -> (rows, outputs), with the copies of the rows of one expert there for the moment."""
    out = x.new_empty(x.shape[0], outputs)
    x.new_empty(tokens, max(x.shape[-1], outputs))
    return out


def planned_experts(experts: Any, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """What grouped experts hold, in shapes that do not depend on which expert a token goes to.

    As transformers' `grouped_mm_experts_forward` does it: rows in the order of their experts and back again.
    `hidden` is (tokens, hidden), `chosen` and `weights` are (tokens, experts a token).
    """
    (tokens, width), each = hidden.shape, chosen.shape[-1]
    expert, order = torch.sort(chosen.reshape(-1))  # (tokens x experts a token,)
    picked = hidden[order // each]  # (tokens x experts a token, hidden)
    sorted_weights = weights.reshape(-1)[order]
    first = experts.gate_up_proj if experts.has_gate else experts.up_proj
    inner = first.shape[-1] if experts.is_transposed else first.shape[-2]
    grouped: Callable[..., torch.Tensor] = GroupedProduct.apply
    product = grouped(picked, first, inner, tokens)
    if experts.has_bias:
        bias = experts.gate_up_proj_bias if experts.has_gate else experts.up_proj_bias
        product = product + bias[expert]
    product = experts._apply_gate(product) if experts.has_gate else experts.act_fn(product)
    product = grouped(product, experts.down_proj, width, tokens)
    if experts.has_bias:
        product = product + experts.down_proj_bias[expert]
    weighted = product * sorted_weights.unsqueeze(-1)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    weighted = weighted[back]
    summed: torch.Tensor = weighted.view(tokens, each, width).sum(dim=1)
    return summed.to(hidden.dtype)


class GradientKept(torch.autograd.Function):
    """Stands where the loss will: its gradient is there before the backward pass begins."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(torch.empty_like(hidden))
        return hidden.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        gradient: torch.Tensor
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0]


class StorageCount(TorchDispatchMode):
    """Counts the bytes of every storage that is made and not yet gone, and the most there were."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.alive: dict[int, int] = {}
        self.now = self.most = 0
        self.turn: tuple[int, int] | None = None
        """Now and most when the turn came."""
        self.turning = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.turning:
            self.turn, self.turning, self.most = (self.now, self.most), False, self.now
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.known or key in self.alive:
            return
        self.alive[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.now -= self.alive.pop(key, 0)
