"""What an architecture takes, found without weights and without a card: a small copy of it runs on fake tensors.

Fake tensors have shapes and storages but no numbers, so a forward and a backward pass cost a second, and every storage
that would be there can be counted. Copies with two and with four layers give what one layer adds.
"""

from __future__ import annotations

import copy
import warnings
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from qlora_studio.core.errors import StudioError
from qlora_studio.core.plan import LinearShape, MeasuredShape, Moment, StepCosts
from qlora_studio.engine.accelerator.formats import DTYPES
from qlora_studio.engine.kernels.checkpointing import checkpoint_layers, decoder_layers
from qlora_studio.engine.kernels.lora import lora_forward
from qlora_studio.engine.load import ADAPTER, linear_names

RANK = 16
FEW, MANY, MOST = (64, 128), (512, 1024), (8192, 16384)
"""Tokens of the runs: few show fixed bytes, very many show the moments that only count then."""
ATTENTION = "sdpa_without_mask"
"""Name under which attention is called here: transformers makes a mask for fake tensors that real ones do without."""
VOCAB = 256
"""The copies' vocabulary: the loss is counted by formula."""


class StorageCount(TorchDispatchMode):
    """Counts the bytes of every storage that is made and not yet gone, and the most there were."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
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


class FourBitProduct(torch.autograd.Function):
    """x·Wᵀ with W dequantised for the moment, in both directions; nothing of x is saved."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: AdaptedLinear) -> torch.Tensor:
        ctx.layer = layer
        weight = x.new_empty(layer.out_features, layer.in_features)
        return nn.functional.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        weight = grads[0].new_empty(ctx.layer.out_features, ctx.layer.in_features)
        return grads[0] @ weight, None


class GradientKept(torch.autograd.Function):
    """Stands where the loss will: its gradient is there before the backward pass begins."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(torch.empty_like(hidden))
        return hidden.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0]


class AdaptedLinear(nn.Module):
    """Stands where a linear layer in four bits with an adapter will; the forward is the engine's own."""

    disable_adapters = False
    active_adapters = (ADAPTER,)

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.packed = nn.Parameter(torch.empty((layer.weight.numel() + 1) // 2, dtype=torch.uint8), requires_grad=False)
        self.lora_A = nn.ModuleDict({ADAPTER: nn.Linear(layer.in_features, RANK, bias=False, dtype=torch.float32)})
        self.lora_B = nn.ModuleDict({ADAPTER: nn.Linear(RANK, layer.out_features, bias=False, dtype=torch.float32)})
        self.lora_dropout = nn.ModuleDict({ADAPTER: nn.Identity()})
        self.scaling = {ADAPTER: 1.0}

    def base_layer(self, x: torch.Tensor) -> torch.Tensor:
        return FourBitProduct.apply(x, self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return lora_forward(self, x)  # has what the forward asks of a LoRA layer


@dataclass(frozen=True, slots=True)
class Run:
    """Bytes at the turns of one forward and backward pass."""

    held: int
    """Between forward and backward."""
    end_peak: int
    """Most before the backward pass reaches the last layer."""
    kept: int
    """When it reaches the last layer, the gradient there included."""
    layer_peak: int
    """Most from then on."""


def measure_folder(folder: Path) -> MeasuredShape:
    """A dry run of the model whose `config.json` lies in a folder. Raises a StudioError where it cannot be made."""
    try:
        return measure(AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True))
    except StudioError:
        raise
    except Exception as error:  # code of any architecture runs here, on tensors that it was never tried with
        first = (str(error).strip().splitlines() or [""])[0].rstrip(".")
        raise StudioError(
            f"This architecture cannot be measured: {type(error).__name__}: {first[:300]}.",
            "Choose another model; a newer transformers may know this one.",
            where=str(folder / "config.json"),
        ) from error


def measure(config: PreTrainedConfig, formats: Sequence[str] = ("bf16", "fp32")) -> MeasuredShape:
    """Sizes of the whole model and costs of its layers in these number formats.

    Raises a StudioError where the model has no linear layer to adapt or no layer that can be computed twice.
    """
    AttentionInterface.register(ATTENTION, sdpa_attention_forward)
    AttentionMaskInterface.register(ATTENTION, lambda *_, **__: None)
    with warnings.catch_warnings(), FakeTensorMode(), no_init_weights():
        warnings.simplefilter("ignore")
        linears, other = _count(config)
        if not linears or not decoder_layers(_build(_shorten(config, 2), torch.bfloat16).get_decoder()):
            raise StudioError(
                f"A {config.model_type} model has no layers that this version can adapt.", field="model_type"
            )
        costs = {compute: _measure_costs(config, DTYPES[compute]) for compute in formats}
    return MeasuredShape(linears=linears, other_bytes=other, costs=costs, rank=RANK)


def _count(config: PreTrainedConfig) -> tuple[tuple[LinearShape, ...], int]:
    """The linear layers by kind, and the bytes in bf16 of everything else. The model is whole but has no numbers."""
    model = _build(config, torch.bfloat16)
    names = set(linear_names(model))
    kinds: Counter[tuple[str, int, int, bool]] = Counter()
    other = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    for name, module in model.named_modules():
        if name in names and isinstance(module, nn.Linear):
            kinds[name.rpartition(".")[2], module.in_features, module.out_features, module.bias is not None] += 1
            other.pop(id(module.weight))
    linears = tuple(
        LinearShape(name=name, inputs=inputs, outputs=outputs, count=count, bias=bias)
        for (name, inputs, outputs, bias), count in kinds.items()
    )
    return linears, sum(tensor.untyped_storage().nbytes() for tensor in other.values())


def _measure_costs(config: PreTrainedConfig, dtype: torch.dtype) -> StepCosts:
    """Costs of a step from copies with two and four layers, none or all of them computed twice."""
    runs = {
        (layers, twice, tokens): _run(config, dtype, layers, twice, tokens)
        for layers, twice in ((2, False), (4, False), (2, True), (4, True))
        for tokens in (*FEW, *MANY, *MOST)
        if (layers == 2 and twice) or tokens in MANY
    }
    hidden = config.get_text_config().hidden_size * dtype.itemsize
    high = MANY[1]
    kept_layer = {n: (runs[4, False, n].held - runs[2, False, n].held) / 2 for n in MANY}
    saved, saved_fixed = _line(kept_layer)
    boundary = (runs[4, True, high].held - runs[2, True, high].held) / 2 / high
    start = {n: runs[2, True, n].kept - hidden * n - 2 * boundary * n for n in MANY}
    ending = {n: runs[2, True, n].held - 2 * boundary * n - start[n] for n in MANY}
    first = {n: 2 * kept_layer[n] + start[n] - (runs[2, False, n].kept - hidden * n) for n in MANY}
    moments = []
    for lengths in (FEW, MANY, MOST):
        top = {
            n: runs[2, True, n].layer_peak - (2 * boundary + start[high] / high + saved) * n - saved_fixed
            for n in lengths
        }
        moments.append(Moment(*_line(top)))
    end = {n: runs[2, True, n].end_peak - runs[2, True, n].held for n in MANY}
    return StepCosts(
        boundary=boundary,
        saved=saved,
        saved_fixed=saved_fixed,
        first_saved_less=first[high] / high,
        around=start[high] / high,
        ending=ending[high] / high,
        layer=tuple(dict.fromkeys(moments)),
        end=Moment(*_line(end)),
    )


def _line(points: Mapping[int, float]) -> tuple[float, int]:
    """Slope and intercept of the line through two points."""
    (x1, y1), (x2, y2) = points.items()
    slope = (y2 - y1) / (x2 - x1)
    return slope, round(y1 - slope * x1)


def _run(config: PreTrainedConfig, dtype: torch.dtype, layers: int, twice: bool, tokens: int) -> Run:
    """One forward and backward pass of a copy with so many layers, counted."""
    model = _build(_shorten(config, layers), dtype)
    for name in linear_names(model):
        parent, _, last = name.rpartition(".")
        module = model.get_submodule(name)
        assert isinstance(module, nn.Linear)
        setattr(model.get_submodule(parent), last, AdaptedLinear(module))
    model.train()
    checkpoint_layers(model.get_decoder(), layers if twice else 0)
    parameters = [*model.parameters()]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    count = StorageCount([*parameters, *[p.grad for p in parameters if p.grad is not None], *model.buffers()])
    ids = torch.zeros(1, tokens, dtype=torch.long)

    def reach(_: torch.Tensor) -> None:
        count.turning = count.turn is None

    def watch(_: nn.Module, __: Any, output: Any) -> None:
        (output[0] if isinstance(output, tuple) else output).register_hook(reach)

    handle = decoder_layers(model.get_decoder())[-1].register_forward_hook(watch)
    with count:
        loss = GradientKept.apply(model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state)
        handle.remove()
        held = count.now - tokens * config.get_text_config().hidden_size * dtype.itemsize
        count.most = count.now
        loss.backward()
    assert count.turn is not None
    return Run(held=held, end_peak=count.turn[1], kept=count.turn[0], layer_peak=count.most)


def _build(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION)
    model.tie_weights()  # left out where weights get no first numbers
    return model


def _shorten(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """The config with fewer layers and a small vocabulary. Kinds of layers keep their order."""
    short = copy.deepcopy(config)
    text = short.get_text_config()
    text.num_hidden_layers, text.vocab_size, text.pad_token_id, text.use_cache = layers, VOCAB, None, False
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return short
