"""What was really loaded, by format and module, beside what the plan said: the plan is a promise, and this holds it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from qlora_studio.core.errors import StudioError
from qlora_studio.core.plan import MIB, MemoryPlan
from qlora_studio.core.words import gib
from qlora_studio.engine.architecture import pattern_of

TOLERANCE = 0.02
"""How far a part may be from its plan before it is said."""
WORTH_BYTES = MIB
"""A difference smaller than this is not worth a sentence whatever its share."""
LABELS = {"weights_4bit": "Weights in 4 bit", "weights_16bit": "Other weights", "adapter": "Adapter"}


@dataclass(slots=True)
class LoadedBytes:
    """Bytes of a loaded model by the parts of a plan, and of each part by module and format."""

    parts: Counter[str] = field(default_factory=Counter)
    modules: dict[str, Counter[str]] = field(default_factory=dict)
    """For each part: by `model.layers.*.mlp.down_proj (torch.bfloat16)`."""

    def add(self, part: str, name: str, tensor: torch.Tensor) -> None:
        size = tensor.untyped_storage().nbytes()
        self.parts[part] += size
        self.modules.setdefault(part, Counter())[f"{pattern_of(name)} ({tensor.dtype})"] += size


def count_loaded(model: nn.Module, device: torch.device | None = None) -> LoadedBytes:
    """Every storage of a model once; with a device only what lies there, so that what is offloaded does not count."""
    found, seen = LoadedBytes(), set[int]()
    for part, name, tensor in _tensors(model):
        pointer = tensor.untyped_storage().data_ptr()
        here = device is None or tensor.device.type == device.type
        if here and pointer not in seen:
            seen.add(pointer)
            found.add(part, name, tensor)
    return found


def find_differences(found: LoadedBytes, plan: MemoryPlan) -> tuple[str, ...]:
    """A sentence for each part of the plan that differs by more than 2 %, with the modules that hold the most of it."""
    return tuple(_differences(found, plan))


def check_loaded(model: nn.Module, plan: MemoryPlan) -> tuple[str, ...]:
    """Compares a model that has its adapter with the plan, where the adapter lies; the sentences of what differs.

    Raises a StudioError where, with what was really loaded, the step that is planned goes over the budget.
    """
    device = next((value.device for name, value in model.named_parameters() if ".lora_" in name), None)
    found = count_loaded(model, device)
    differences = find_differences(found, plan)
    more = sum(found.parts[part] - plan.estimate.part_bytes(part) for part in LABELS)
    total = plan.estimate.total_bytes + more
    if differences and plan.fits and total > plan.budget_bytes:
        raise StudioError(
            f"The model takes more than was planned: {' '.join(differences)} With that a step takes {gib(total)}, and the "
            f"budget is {gib(plan.budget_bytes)}.",
            "Choose a smaller model, or raise the budget.",
        )
    return differences


def _differences(found: LoadedBytes, plan: MemoryPlan) -> Iterator[str]:
    for part, label in LABELS.items():
        planned, there = plan.estimate.part_bytes(part), found.parts[part]
        if abs(there - planned) <= max(TOLERANCE * planned, WORTH_BYTES):
            continue
        largest = found.modules.get(part, Counter()).most_common(2)
        named = ", ".join(f"{name} {gib(size)}" for name, size in largest)
        yield f"{label}: {gib(there)} loaded, {gib(planned)} planned{f'; most of it {named}' if named else ''}."


def _tensors(model: nn.Module) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Part, name and tensor of everything a model holds; what belongs to a quantised weight goes by its name."""
    for name, parameter in model.named_parameters():
        clean = name.removeprefix("base_model.model.").replace(".base_layer", "")
        module = clean.rpartition(".")[0]
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            for tensor in (parameter, state.absmax, state.code, state.offset):
                yield "weights_4bit", module, tensor
            for tensor in (state.state2.absmax, state.state2.code) if state.nested else ():
                yield "weights_4bit", module, tensor
        elif ".lora_" in name:
            yield "adapter", module.partition(".lora_")[0], parameter
        else:
            yield "weights_16bit", clean.removesuffix(".weight"), parameter
    for name, buffer in model.named_buffers():
        yield "weights_16bit", name.removeprefix("base_model.model."), buffer
