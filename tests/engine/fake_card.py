"""A card that is not there: the engine's own code on tensors that claim `cuda:0` and have shapes but no numbers.

A torch built for processors aborts when autograd meets a tensor on `cuda`. So its C++ side is told `meta` and Python
`cuda:0`: a FakeTensor whose `fake_device` is the card. Fake tensors refuse a mismatch of devices by themselves; what
makes the host wait, which attention kernel a card would choose and what lies on the card is counted here. Not seen:
numbers, fragmentation, kernels' own scratch, and `load_base`, because bitsandbytes' `Params4bit` cannot be fake.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import bitsandbytes as bnb
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _device as CONTEXTS
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.initialization import no_init_weights
from transformers.utils import import_utils

from qlora_studio.core.config import LoraSettings
from qlora_studio.engine.accelerator.cuda import CudaAccelerator
from qlora_studio.engine.accelerator.protocol import Peak, Wait
from qlora_studio.engine.accumulator import Accumulator
from qlora_studio.engine.host_embeddings import look_tokens_up_on_host
from qlora_studio.engine.kernels.dropout import RowSeeds
from qlora_studio.engine.load import Device, attach_adapter, choose_attention
from tests.engine.fake_attention import choose_kernel

CARD, META = torch.device("cuda", 0), torch.device("meta")
DEVICE_OF = torch.ops.prim.device.default
UNSCALE = "_amp_foreach_non_finite_check_and_unscale_"


@dataclass
class Seen:
    """What a card would have been asked for."""

    waits: Counter[str] = field(default_factory=Counter)
    """What made the host wait for the card, by operation."""
    attention: Counter[str] = field(default_factory=Counter)
    """Calls of each attention kernel."""
    storages: dict[int, int] = field(default_factory=dict)
    """Bytes of each storage that lies on the card."""
    held: int = 0
    most: int = 0
    """Bytes on the card, now and at most since the peak was last reset."""

    def take(self, storage: torch.UntypedStorage) -> None:
        """Counts a storage until nothing refers to it any more."""
        key = storage._cdata
        if key not in self.storages:
            self.storages[key] = storage.nbytes()
            self.spike(storage.nbytes())
            self.held += storage.nbytes()
            weakref.finalize(storage, self._give_back, key)

    def spike(self, more: int) -> None:
        """So many bytes for a moment."""
        self.most = max(self.most, self.held + more)

    def _give_back(self, key: int) -> None:
        self.held -= self.storages.pop(key, 0)


class FakeAccelerator(CudaAccelerator):
    """The engine's own accelerator for cards; only what needs a driver is pretended."""

    label = "a card that is not there"

    def __init__(self, capability: tuple[int, int], seen: Seen) -> None:
        self.capability, self.seen = capability, seen

    def cap(self, budget_bytes: int) -> None:
        """Nothing: a test looks at the peak instead."""

    def peak(self) -> Peak:
        return Peak(0, self.seen.most)  # nothing is planned by what is only allocated

    def reset_peak(self) -> None:
        self.seen.most = self.seen.held

    def synchronise(self) -> None:
        self.seen.waits["synchronise"] += 1

    def run_beside(self, copies: Callable[[], None]) -> Wait:
        copies()
        return lambda: None

    def attention_kernels(self, dtype: torch.dtype, *, grouped: bool) -> tuple[str, ...]:
        q = torch.empty(1, 4, 16, 64, dtype=dtype, device=CARD)
        kv = q[:, :2] if grouped else q
        return (choose_kernel(self.capability, q, kv, kv, enable_gqa=grouped)[0],)

    def random_state(self) -> dict[str, torch.Tensor]:
        return {}

    def set_random_state(self, states: Mapping[str, torch.Tensor]) -> None:
        """Nothing: what has no numbers draws none."""


class Watch(TorchDispatchMode):
    """Sees every operation that reaches the card, and answers those that fake tensors cannot."""

    def __init__(self, seen: Seen, mode: FakeTensorMode) -> None:
        super().__init__()
        self.seen, self.mode = seen, mode

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is DEVICE_OF:
            return function(*args, **(kwargs or {}))
        out = self._answer(function, args, dict(kwargs or {}))
        for leaf in tree_leaves(out):
            if lies_on_card(leaf):
                self.seen.take(leaf.untyped_storage())
        return out

    def _answer(self, function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        name = function._schema.name.partition("::")[2]
        if kwargs.get("device") == META:
            kwargs["device"] = CARD  # asked by autograd's C++ side
        kwargs.pop("pin_memory", None)
        here = any(lies_on_card(leaf) for leaf in tree_leaves((args, kwargs)))
        if name == "_local_scalar_dense":
            return self._number(args[0], here)
        if name == "nonzero":
            self._wait(name, here)
            return args[0].new_empty(args[0].numel(), args[0].dim(), dtype=torch.long)
        if name == UNSCALE and any(gradient.dtype == torch.bfloat16 for gradient in args[0]):
            raise NotImplementedError(f"\"{name}cuda\" not implemented for 'BFloat16'")  # pytorch issue 127176
        if name == UNSCALE:
            return None
        if name == "_amp_update_scale_":
            return args[0]
        if name == "gemm_4bit":
            self.seen.spike(args[2][0] * args[2][1] * args[0].element_size())  # dequantised for the moment
            return args[0].new_empty(*args[0].shape[:-1], args[2][0])
        if name in ("_to_copy", "copy_"):
            self._watch_copy(name, args, kwargs)
        if torch.device(kwargs.get("device") or "cpu").type == "cuda":
            args = tree_map(self._without_value, args)  # a known value would be copied to the card in earnest
        return function(*args, **kwargs)

    def _number(self, tensor: torch.Tensor, here: bool) -> bool | float | int:
        self._wait("item", here)
        if tensor.dtype == torch.bool:
            return True
        return 0.0 if tensor.dtype.is_floating_point else 1

    def _watch_copy(self, name: str, args: Any, kwargs: Any) -> None:
        source = args[1] if name == "copy_" else args[0]
        target = args[0].device if name == "copy_" else torch.device(kwargs.get("device") or source.device)
        waits = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
        self._wait("copy to the host", target.type == "cpu" and lies_on_card(source) and waits)

    def _wait(self, what: str, really: bool) -> None:
        self.seen.waits[what] += int(really)

    def _without_value(self, value: Any) -> Any:
        if isinstance(value, FakeTensor):
            value.constant = None
        elif isinstance(value, torch.Tensor):
            return self.mode.from_tensor(value)
        return value


def lies_on_card(value: Any) -> bool:
    return isinstance(value, FakeTensor) and value.fake_device.type == "cuda"


@contextmanager
def fake_card(capability: tuple[int, int]) -> Iterator[FakeAccelerator]:
    """A computer with a card of this compute capability, for fake tensors only."""
    mode, seen = FakeTensorMode(allow_non_fake_inputs=True), Seen()
    maps = {"dynamic": bnb.functional.create_dynamic_map(), "udynamic": bnb.functional.create_dynamic_map(signed=False)}

    def attend(q: Any, k: Any, v: Any, attn_mask: Any = None, dropout_p: float = 0.0, **options: Any) -> torch.Tensor:
        name, out = choose_kernel(capability, q, k, v, attn_mask=attn_mask, dropout_p=dropout_p, **options)
        seen.attention[name] += 1
        return out

    def attend_by_row(q: Any, k: Any, v: Any, starts: Any, *_: Any, **options: Any) -> torch.Tensor:
        assert starts.dtype == torch.int32 and lies_on_card(starts)
        seen.attention["varlen"] += 1
        grouped = (part.transpose(0, 1).unsqueeze(0) for part in (q, k, v))
        out = choose_kernel(capability, *grouped, is_causal=True, enable_gqa=options["enable_gqa"])[1]
        return out.squeeze(0).transpose(0, 1)

    def to_list(tensor: FakeTensor) -> list[float]:
        seen.waits["tolist"] += int(lies_on_card(tensor))
        return [0.0] * tensor.numel()

    patches = [
        mock.patch.object(torch.cuda, "is_available", lambda: True),
        mock.patch.object(torch.cuda, "get_device_capability", lambda *_: capability),
        mock.patch.object(torch.cuda, "_lazy_init", lambda: None),
        mock.patch.object(torch.cuda, "current_device", lambda: 0),
        mock.patch.object(torch.cuda, "device_count", lambda: 1),
        mock.patch.object(torch.cuda, "empty_cache", lambda: None),
        mock.patch.object(torch.cuda, "is_current_stream_capturing", lambda: False),
        mock.patch.object(torch.cuda, "reset_peak_memory_stats", lambda *_: None),
        mock.patch.object(torch.cuda, "max_memory_allocated", lambda *_: 0),
        mock.patch.object(torch.cuda, "max_memory_reserved", lambda *_: 0),
        mock.patch.object(torch.cuda, "get_rng_state", lambda *_: torch.zeros(16, dtype=torch.uint8, device="cpu")),
        mock.patch.object(torch.cuda, "set_rng_state", lambda *_: None),
        mock.patch.object(torch.cuda, "synchronize", lambda *_: seen.waits.update(["synchronise"])),
        mock.patch.object(torch, "tensor", _made_on_host(torch.tensor)),
        mock.patch.object(torch.Tensor, "pin_memory", lambda tensor, *_: tensor),
        mock.patch.object(F, "scaled_dot_product_attention", attend),
        mock.patch.object(torch.ops.aten, "_fused_rms_norm", _norm_in_one_kernel),
        mock.patch.object(torch.ops.aten, "_fused_rms_norm_backward", _norm_gradient_in_one_kernel),
        mock.patch.object(Accumulator, "refuse_changed", lambda _: None),  # every comparison without numbers says yes
        mock.patch.object(RowSeeds, "keep_mask", lambda _, x, *__: torch.ones_like(x, dtype=torch.bool)),
        mock.patch.object(torch.backends.cuda, "is_flash_attention_available", lambda: True),
        mock.patch("qlora_studio.engine.kernels.documents.varlen_attn", attend_by_row),
        mock.patch.object(FakeTensor, "tolist", to_list),
        mock.patch.object(FakeTensor, "__torch_dispatch__", classmethod(_intercept_meta)),
        mock.patch.object(FakeTensorMode, "dispatch", _make_on_card),
        mock.patch.dict(fake_tensor._DISPATCH_META_HANDLERS, {DEVICE_OF: lambda _: META}),
        mock.patch.object(nn.Module, "_apply", _apply_without_swapping),
        mock.patch.object(import_utils, "is_fake_tensor", lambda _: False),
        mock.patch.dict(bnb.functional.name2qmap, maps),
        mock.patch.object(bnb.optim.optimizer.Optimizer8bit, "fill_qmap", lambda self: self.name2qmap.update(maps)),
    ]
    _device_constructors.cache_clear()
    with ExitStack() as stack:
        stack.callback(_leave_no_trace)
        stack.enter_context(mode)
        stack.enter_context(Watch(seen, mode))
        for patch in patches:
            stack.enter_context(patch)
        yield FakeAccelerator(capability, seen)


def _norm_in_one_kernel(rows: Any, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """A card has a kernel for it; fake tensors only know the seven that it stands for."""
    return torch.empty_like(rows), rows.new_empty(len(rows), 1, dtype=torch.float32)


def _norm_gradient_in_one_kernel(gradient: Any, *_: Any) -> tuple[torch.Tensor, None]:
    return torch.empty_like(gradient), None


def _leave_no_trace() -> None:
    """Forgets which constructors `torch.device(...)` as a context knows: the list is kept, and may be of patched ones.

    A model that is loaded later in the same process would have tensors on another device than the context's.
    """
    _device_constructors.cache_clear()
    assert CONTEXTS.CURRENT_DEVICE is None, "a torch.device(...) context was not left"


_inner_dispatch: Any = FakeTensor.__dict__["__torch_dispatch__"].__func__
_inner_mode_dispatch: Any = FakeTensorMode.dispatch


def _intercept_meta(cls: Any, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    return META if function is DEVICE_OF else _inner_dispatch(cls, function, types, args, kwargs or {})


def _make_on_card(mode: Any, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    kwargs = kwargs or {}
    if kwargs.get("device") == META and not mode.in_kernel_invocation:
        kwargs = {**kwargs, "device": CARD}
    return _inner_mode_dispatch(mode, function, types, args, kwargs)


def _made_on_host(make: Any) -> Any:
    def made(*args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        tensor: torch.Tensor = make(*args, **kwargs, device="cpu")
        return tensor if device is None else tensor.to(device)

    return made


def _apply_without_swapping(module: nn.Module, change: Any, recurse: bool = True) -> nn.Module:
    """`Module._apply` with new parameters: fake tensors cannot change their place."""
    for inner in module.modules() if recurse else (module,):
        for name, parameter in inner._parameters.items():
            if parameter is not None:
                inner._parameters[name] = nn.Parameter(change(parameter.detach()), parameter.requires_grad)
        for name, buffer in inner._buffers.items():
            inner._buffers[name] = None if buffer is None else change(buffer)
    return module


def build_on_card(
    config: PreTrainedConfig,
    device: Device,
    adapter: torch.dtype,
    *,
    embeddings_on_host: bool = False,
    dropout: float = 0.0,
) -> PeftModel:
    """A model as `load_base` and `attach_adapter` leave it on a card: NF4 linear layers but the head, with LoRA."""
    dtype, attention = device.dtype, choose_attention(config, device)
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    model.to(CARD)
    model.tie_weights()
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and layer is not model.get_output_embeddings():
            model.set_submodule(name, _four_bit(layer, dtype))
    if embeddings_on_host:
        embeddings: Any = model.get_input_embeddings()
        embeddings.weight = nn.Parameter(torch.empty(embeddings.weight.shape, dtype=dtype, device="cpu"))
        look_tokens_up_on_host(model, CARD)
    model.is_loaded_in_4bit = True
    model.requires_grad_(False)
    model.config.use_cache = False
    return attach_adapter(model, LoraSettings(rank=8, dropout=dropout), adapter, seed=0)


def _four_bit(linear: nn.Linear, dtype: torch.dtype) -> nn.Module:
    """bitsandbytes' own layer; a plain parameter carries what it and PEFT ask of a `Params4bit`."""
    packed, state = bnb.functional.quantize_4bit(linear.weight.data, quant_type="nf4", compress_statistics=True)
    layer: Any = bnb.nn.Linear4bit.__new__(bnb.nn.Linear4bit)
    nn.Module.__init__(layer)
    layer.weight = nn.Parameter(packed, requires_grad=False)
    attributes = {"quant_state": state, "compress_statistics": True, "quant_type": "nf4", "bnb_quantized": True}
    for name, value in {**attributes, "blocksize": 64, "quant_storage": torch.uint8}.items():
        setattr(layer.weight, name, value)
    layer.in_features, layer.out_features, layer.bias = linear.in_features, linear.out_features, linear.bias
    layer.compute_dtype, layer.compute_type_is_set, layer.quant_state = dtype, True, state
    layer.quant_storage, layer.support_avx512bf16_for_cpu = torch.uint8, False
    made: nn.Module = layer
    return made
