"""A causal language model whose weights stay in their files: each module's are read before it computes and let go after.

For asking a model that is larger than card and memory together. Some thousands of tokens go through all layers at once,
so the files are read once or a few times, and what is in memory is the largest single weight beside those tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psutil
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qlora_studio.core.errors import StudioError
from qlora_studio.engine.compare import Probe
from qlora_studio.engine.load import Device

PASS_TOKENS = 8192
"""Tokens, padding included, that go through the layers together."""
Read = Callable[[str], torch.Tensor]
"""A parameter of the model by its name there, as its files hold it, of any dtype."""


def fits_in_memory(weights_bytes: int) -> bool:
    """Whether weights of this size leave the computer's memory a tenth of themselves to compute with."""
    return weights_bytes * 1.1 < int(psutil.virtual_memory().available)


class LayerwiseModel:
    """The model, on the device one module at a time."""

    def __init__(self, model: Any, read: Read, device: Device) -> None:
        """`model` is whole on torch's meta device, its tied weights tied. Raises a StudioError where it has no layers apart."""
        if model.base_model is model:
            raise _unknown(type(model).__name__)
        self.model, self.read, self.device = model.eval(), read, device
        self._names: dict[int, str] = {}
        for name, parameter in model.named_parameters():
            self._names.setdefault(id(parameter), name)
        self._owners = [
            module for module in model.modules() if any(one is not None for one in module._parameters.values())
        ]
        for module in self._owners:
            module.register_forward_pre_hook(self._fetch)
            module.register_forward_hook(self._drop, always_call=True)
        self._kept: dict[nn.Module, dict[str, nn.Parameter]] = {}
        self._wanted: list[tuple[int, int]] = []
        model.base_model.register_forward_hook(self._choose_positions)
        self._advanced: Callable[[], None] = lambda: None

    def log_probabilities(
        self, probes: Sequence[Probe], advanced: Callable[[int, int], None] = lambda done, total: None
    ) -> torch.Tensor:
        """Log-probabilities (positions, vocab), fp32 on the CPU, at all positions of the probes in order.

        `advanced` hears how many modules were read, and how many there are to read.
        """
        groups = list(_group([probe for probe in probes if probe.positions]))
        done, total = 0, len(self._owners) * len(groups)

        def step() -> None:
            nonlocal done
            done += 1
            advanced(done, total)

        self._advanced = step
        rows = [self._ask(group) for group in groups]
        return torch.cat(rows) if rows else torch.empty(0, 0)

    @torch.inference_mode()
    def _ask(self, probes: Sequence[Probe]) -> torch.Tensor:
        width = max(probe.positions[-1] + 1 for probe in probes)
        ids = torch.zeros(len(probes), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, probe in enumerate(probes):
            length = probe.positions[-1] + 1
            ids[row, :length], mask[row, :length] = torch.tensor(probe.ids[:length]), 1
        self._wanted = [(row, position) for row, probe in enumerate(probes) for position in probe.positions]
        place = self.device.torch
        try:
            with _NothingOnMeta():  # type: ignore[no-untyped-call]
                logits = self.model(input_ids=ids.to(place), attention_mask=mask.to(place), use_cache=False).logits[0]
        except _NotThere:
            raise _unknown(type(self.model).__name__) from None
        return logits.float().log_softmax(-1).cpu()  # type: ignore[no-any-return]

    def _choose_positions(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Hands the head (1, positions, hidden): distributions at all tokens would be larger than the model."""
        rows, positions = (torch.tensor(one, device=output.last_hidden_state.device) for one in zip(*self._wanted))  # noqa: B905
        output.last_hidden_state = output.last_hidden_state[rows, positions].unsqueeze(0)

    def _fetch(self, module: nn.Module, inputs: Any) -> None:
        self._kept[module] = {}
        for leaf, parameter in list(module._parameters.items()):
            if parameter is not None:
                self._kept[module][leaf] = parameter
                weight = self.read(self._names[id(parameter)])
                if weight.shape != parameter.shape:
                    raise StudioError(
                        f"{self._names[id(parameter)]} has the shape {tuple(weight.shape)}, and the model "
                        f"{tuple(parameter.shape)}.", "Export again.",
                    )  # fmt: skip
                weight = weight.to(self.device.torch, self.device.dtype)
                module._parameters[leaf] = nn.Parameter(weight, requires_grad=False)
        self._advanced()

    def _drop(self, module: nn.Module, inputs: Any, output: Any) -> None:
        module._parameters.update(self._kept.pop(module, {}))


class _NotThere(Exception):
    """A module computes with another one's weight, which is still on the meta device."""


class _NothingOnMeta(TorchDispatchMode):
    """Ends a pass that computes with such a weight: some of torch's products on a processor give numbers for it."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(leaf, torch.Tensor) and leaf.is_meta for leaf in tree_leaves((args, kwargs))):
            raise _NotThere
        return function(*args, **(kwargs or {}))


def _group(probes: Sequence[Probe]) -> Iterator[list[Probe]]:
    """The probes in order, as many at once as fill `PASS_TOKENS` when padded; a longer one alone."""
    group: list[Probe] = []
    for probe in probes:
        width = max(one.positions[-1] + 1 for one in (*group, probe))
        if group and width * (len(group) + 1) > PASS_TOKENS:
            yield group
            group = []
        group.append(probe)
    if group:
        yield group


def _unknown(kind: str) -> StudioError:
    return StudioError(
        f"This export does not fit into memory, and a {kind} cannot be checked layer by layer.",
        "Close other programs and export again, or export without the comparison.",
    )
