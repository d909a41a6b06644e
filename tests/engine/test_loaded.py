"""Loading goes down the out-of-memory ladder: input embeddings stay in the computer's memory where that lets it fit."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.plan import PlanSettings
from qlora_studio.engine.accelerator.cpu import CpuAccelerator
from qlora_studio.engine.load import Device, load_base
from qlora_studio.engine.loaded import load_for_training, load_or_offload
from tests.engine.architectures import write_model
from tests.engine.conftest import make_plan


class Card:
    """Loads only with the embeddings on the host, or not at all."""

    name = "cuda"

    def __init__(self, *, ever: bool = True, error: BaseException | None = None) -> None:
        self.ever, self.error, self.tries, self.released = ever, error or torch.OutOfMemoryError("full"), [], 0

    def release(self) -> None:
        self.released += 1

    def load(self, on_host: bool) -> str:
        self.tries.append(on_host)
        if on_host and self.ever:
            return "model"
        raise StudioError("The model does not fit.") from self.error


def plan_with(offload):
    return make_plan(200).model_copy(update={"offload": offload, "settings": PlanSettings(offload=offload)})


def plan_again(settings):
    """Stands where the planner does, which the engine does not know."""
    return plan_with(settings.offload).model_copy(update={"host_bytes": 7})


@pytest.mark.parametrize(("before", "after"), [("none", "embeddings"), ("boundaries", "both")])
def test_a_model_that_does_not_fit_is_loaded_again_with_its_embeddings_offloaded(before, after):
    card = Card()
    model, plan, notes = load_or_offload(card.load, plan_with(before), card, plan_again)
    assert (model, card.tries, card.released) == ("model", [False, True], 1)
    assert (plan.offload, plan.settings.offload, plan.host_bytes) == (after, after, 7)
    assert notes == (
        "Memory ran out while the model was loaded: it is loaded again with the input embeddings offloaded.",
    )


@pytest.mark.parametrize(
    ("card", "offload", "may"),
    [
        (Card(), "none", False),
        (Card(ever=False), "embeddings", True),
        (Card(error=ValueError("a broken file")), "none", True),
    ],
    ids=["a person's own setting", "offloaded already", "another error"],
)
def test_where_offloading_is_no_way_out_the_error_stands(card, offload, may):
    with pytest.raises(StudioError, match="The model does not fit"):
        load_or_offload(card.load, plan_with(offload), card, plan_again if may else None)
    assert len(card.tries) == 1


def test_memory_that_runs_out_in_the_loader_is_known_as_such(tmp_path, monkeypatch):
    monkeypatch.setenv("QLORA_STUDIO_FAULT", "load:oom@1")
    monkeypatch.setattr("qlora_studio.faults._passed", Counter())
    folder = write_model("llama", tmp_path)
    with pytest.raises(StudioError, match="memory ran out on the processor while it was loaded"):
        load_for_training(folder, TrainConfig(), make_plan(200))
    assert load_base(folder, Device(CpuAccelerator(), torch.bfloat16)) is not None


def test_a_processor_has_no_such_rung():
    card = SimpleNamespace(name="cpu", release=lambda: None)
    with pytest.raises(StudioError, match="The model does not fit"):
        load_or_offload(Card().load, plan_with("none"), card, plan_again)


def test_a_model_is_loaded_under_the_cap_of_its_plan_with_its_adapter_and_its_noise(tmp_path, monkeypatch):
    caps, card = [], CpuAccelerator()
    monkeypatch.setattr(card, "cap", caps.append, raising=False)
    monkeypatch.setattr("qlora_studio.engine.loaded.choose_device", lambda compute: Device(card, asked(compute)))
    formats = []

    def asked(compute):
        formats.append(compute)
        return torch.float32

    config = TrainConfig().replace({"optim.neftune_alpha": 5.0, "lora.rank": 4, "model.compute_dtype": "bf16"})
    plan = make_plan(200).model_copy(update={"budget_bytes": 12345})
    loaded = load_for_training(write_model("llama", tmp_path), config, plan)
    assert caps == [12345] and formats == ["bf16"] and loaded.plan is plan
    assert loaded.model.peft_config["default"].r == 4
    assert loaded.device.accelerator is card
    with_settings = plan.model_copy(update={"settings": PlanSettings(compute="fp32")})
    load_for_training(tmp_path, config, with_settings)
    assert formats == ["bf16", "fp32"]
