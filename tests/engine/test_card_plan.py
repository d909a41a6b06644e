"""The plan against a card that is only pretended: weights to the byte, a step's peak never above it and hardly below."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from qlora_studio.core import events as ev
from qlora_studio.core.example import Example
from qlora_studio.core.plan import MemoryPlan, ModelShape
from qlora_studio.engine import dry_run, loop
from qlora_studio.engine.accelerator.formats import DTYPES
from qlora_studio.engine.load import Device
from qlora_studio.engine.setup import Setup
from qlora_studio.planner import activations
from qlora_studio.planner.activations import step_peak
from qlora_studio.planner.corrections import step_settings
from qlora_studio.planner.estimate import fixed_bytes
from qlora_studio.planner.fit import make_plan
from qlora_studio.planner.shape import shape_from_config
from qlora_studio.planner.tables import imagine_machine
from tests.engine.architectures import config_of
from tests.engine.conftest import make_config
from tests.engine.fake_card import FakeAccelerator, build_on_card, fake_card
from tests.engine.test_card import AMPERE, TURING, short
from tests.matrix import mostly_slow

SIZES = {"hidden_size": 256, "intermediate_size": 896, "head_dim": 64, "max_position_embeddings": 8192}
TOKENS = 2048


@dataclass(frozen=True)
class Case:
    """A step of so many tokens in rows of this length."""

    family: str = "llama"
    capability: tuple[int, int] = AMPERE
    row: int = TOKENS
    tiled: bool = False
    measured: bool = False
    """Whether a dry run stands in for the formulas, as it does for a family that has none."""
    memory: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """What lay on the card, and what was planned."""

    weights: int
    """Base and adapter, before anything is computed."""
    weights_planned: int
    peak: int
    """Of forward and backward, without weights, adapter, gradients and optimizer."""
    peak_planned: int


def measure(case: Case, folder: Path) -> Measured:
    config = config_of(case.family) if case.measured else short(case.family)  # a dry run wants four layers
    config.update(SIZES)
    shape = shape_from_config(config.to_dict() | {"architectures": ["XForCausalLM"]}, case.family)
    if case.measured:
        shape = shape.model_copy(update={"measured": dry_run.measure(config, ["bf16"]), "exact": False})
    plan, run_config = plan_for(case, shape)
    with fake_card(case.capability) as accelerator:
        device = Device(accelerator, DTYPES[plan.settings.compute])
        on_host = plan.offload in ("embeddings", "both")
        model = build_on_card(config, device, DTYPES[plan.adapter_precision], embeddings_on_host=on_host)
        weights = accelerator.seen.held
        row = Example(tuple(number % 500 for number in range(case.row)), ((0, case.row),))
        setup = Setup(run_config, plan, accelerator, model, [row] * (TOKENS // case.row), [], folder, "tiny/base")
        probe = try_largest_step(setup, accelerator)
    settings = step_settings(plan, probe)
    return Measured(
        weights=weights,
        weights_planned=sum(plan.estimate.part_bytes(key) for key in ("weights_4bit", "weights_16bit", "adapter")),
        peak=probe.measured_bytes - fixed_bytes(shape, settings),
        peak_planned=step_peak(shape, settings).total,
    )


def plan_for(case: Case, shape: ModelShape) -> tuple[MemoryPlan, Any]:
    machine = imagine_machine(24)
    card = machine.cards[0].model_copy(update={"compute_capability": case.capability})
    run_config = make_config(
        lora__rank=8, optim__batch_tokens=TOKENS, optim__max_steps=1, optim__learning_rate=1e-4,
        data__max_length=case.row, memory__micro_batch_tokens=TOKENS, **case.memory,
    )  # fmt: skip
    plan = make_plan(run_config, shape, machine.model_copy(update={"cards": (card,)}), [case.row])
    settings = plan.settings.model_copy(update={"tiled_mlp": case.tiled})
    return plan.model_copy(update={"tiled_mlp": case.tiled, "settings": settings}), run_config


def try_largest_step(setup: Setup, accelerator: FakeAccelerator) -> ev.ProbeMeasured:
    events: list[ev.Event] = []
    loop.train(setup, events.append, lambda: "pause")
    return next(event for event in events if isinstance(event, ev.ProbeMeasured))


AWAY = {"memory__gradient_checkpointing": "full", "memory__offload": "boundaries"}
NONE, FULL = {"memory__gradient_checkpointing": "none"}, {"memory__gradient_checkpointing": "full"}
CASES = {
    "llama": Case(memory=NONE),
    "qwen3, checkpointed": Case("qwen3", row=512, memory=FULL),
    "gemma3, windows": Case("gemma3_text", row=1024, memory=NONE),
    "phi3": Case("phi3", memory=NONE),
    "Turing, rows": Case(capability=TURING, row=512, memory=NONE),
    "tiles, both offloaded": Case(tiled=True, memory=FULL | {"memory__offload": "both"}),
}
MORE = (
    {
        f"{family}, {name}, {row}, {capability[0]}.{capability[1]}": Case(family, capability, row, memory=memory)
        for family in ("llama", "qwen2", "qwen3", "mistral", "phi3", "gemma3_text")
        for name, memory in (("none", NONE), ("full", FULL))
        for capability in (AMPERE, TURING)
        for row in (TOKENS, 512)
    }
    | {
        f"{family}, measured, tiles, {name}": Case(family, tiled=True, measured=True, memory=memory)
        for family in ("olmo2", "granite", "smollm3", "glm4")
        for name, memory in (("none", NONE), ("full", FULL))
    }
    | {
        f"{family}, {'measured, ' if measured else ''}offloaded": Case(family, measured=measured, memory=AWAY)
        for family, measured in (
            ("llama", False),
            ("qwen3", False),
            ("phi3", False),
            ("gemma3_text", False),
            ("granite", True),
            ("phi", True),
        )
    }
)


def assert_planned(found: Measured) -> None:
    assert found.weights == found.weights_planned
    assert found.peak <= found.peak_planned <= 1.05 * found.peak


@pytest.mark.parametrize("name", mostly_slow(CASES))
def test_a_step_on_a_card_takes_what_is_planned(name, tmp_path):
    assert_planned(measure(CASES[name], tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("case", MORE.values(), ids=MORE)
def test_every_family_takes_what_is_planned(case, tmp_path):
    assert_planned(measure(case, tmp_path))


@pytest.mark.slow
def test_a_plan_below_the_peak_is_noticed(tmp_path, monkeypatch):
    """What the plan of the first mixtures and of grouped queries on Turing was: too small, and nobody looked."""
    monkeypatch.setattr(activations, "_repeated_bytes", lambda shape, settings: 0)
    with pytest.raises(AssertionError):
        assert_planned(measure(Case(capability=TURING, memory=NONE), tmp_path))
