"""A base with a fresh adapter as a plan wants them: what a training and a search for its learning rate begin with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from peft import PeftModel
from transformers import PreTrainedModel

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.plan import MemoryPlan, PlanSettings
from qlora_studio.engine.accelerator.formats import DTYPES
from qlora_studio.engine.accelerator.protocol import Accelerator
from qlora_studio.engine.kernels.dropout import add_noise
from qlora_studio.engine.load import Device, attach_adapter, choose_device, load_base
from qlora_studio.engine.loaded_bytes import check_loaded
from qlora_studio.engine.oom import is_out_of_memory
from qlora_studio.engine.planned import tensor_budget_bytes

Model = TypeVar("Model")
Offload = Literal["embeddings", "both"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to be trained."""

    device: Device
    model: PeftModel
    plan: MemoryPlan
    """The plan, with the embeddings offloaded where it could not be loaded otherwise."""
    notes: tuple[str, ...]
    """What came otherwise than planned, in words."""


def load_for_training(
    folder: Path, config: TrainConfig, plan: MemoryPlan, plan_again: Callable[[PlanSettings], MemoryPlan] | None = None
) -> Loaded:
    """The base of a folder in 4 bits with its adapter, under the plan's cap. Raises a StudioError as its parts do.

    `plan_again` makes the plan for other settings; without it, what does not fit as it is planned is not loaded.
    """
    device = choose_device(plan.settings.compute if plan.settings else config.model.compute_dtype)
    device.accelerator.cap(tensor_budget_bytes(plan))

    def load(on_host: bool) -> PreTrainedModel:
        return load_base(folder, device, embeddings_on_host=on_host)

    again = plan_again if config.memory.offload == "auto" else None
    base, plan, notes = load_or_offload(load, plan, device.accelerator, again)
    model = attach_adapter(base, config.lora, DTYPES[plan.adapter_precision], config.optim.seed)
    add_noise(model, config.optim.neftune_alpha)
    return Loaded(device, model, plan, (*notes, *check_loaded(model, plan)))


def load_or_offload(
    load: Callable[[bool], Model],
    plan: MemoryPlan,
    accelerator: Accelerator,
    plan_again: Callable[[PlanSettings], MemoryPlan] | None,
) -> tuple[Model, MemoryPlan, tuple[str, ...]]:
    """What `load` gives, which is told whether input embeddings stay on the host; then the plan, and what is said.

    The out-of-memory ladder's rung for loading: micro-batches and checkpointing save nothing here. Raises what `load`
    raises where the embeddings are offloaded already, may not be (no `plan_again`), or where it was no lack of memory.
    """
    on_host = plan.offload in ("embeddings", "both")
    try:
        return load(on_host), plan, ()
    except StudioError as error:
        if on_host or plan_again is None or plan.settings is None or accelerator.name == "cpu":
            raise
        if not is_out_of_memory(error):
            raise
    accelerator.release()  # outside the handler, so that what the failed try holds is gone
    smaller: Offload = "both" if plan.offload == "boundaries" else "embeddings"
    message = "Memory ran out while the model was loaded: it is loaded again with the input embeddings offloaded."
    return load(True), plan_again(plan.settings.model_copy(update={"offload": smaller})), (message,)
