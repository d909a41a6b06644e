"""A base with a fresh adapter as a plan wants them: what a training and a search for its learning rate begin with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.plan import MemoryPlan
from qlora_studio.engine.accelerator.formats import DTYPES
from qlora_studio.engine.kernels.dropout import add_noise
from qlora_studio.engine.load import Device, attach_adapter, choose_device, load_base
from qlora_studio.engine.loaded_bytes import check_loaded
from qlora_studio.engine.planned import tensor_budget_bytes


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to be trained."""

    device: Device
    model: PeftModel
    notes: tuple[str, ...]
    """In which its bytes differ from the plan's, in words."""


def load_for_training(folder: Path, config: TrainConfig, plan: MemoryPlan) -> Loaded:
    """The base of a folder in 4 bits with its adapter, under the plan's cap. Raises a StudioError as its parts do."""
    device = choose_device(plan.settings.compute if plan.settings else config.model.compute_dtype)
    device.accelerator.cap(tensor_budget_bytes(plan))
    base = load_base(folder, device, embeddings_on_host=plan.offload in ("embeddings", "both"))
    model = attach_adapter(base, config.lora, DTYPES[plan.adapter_precision], config.optim.seed)
    add_noise(model, config.optim.neftune_alpha)
    return Loaded(device, model, tuple(check_loaded(model, plan)))
