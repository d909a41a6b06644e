"""Every memory preset fits its card for the models that its sentence promises, with every rank preset."""

import re

import pytest

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.machine import Machine
from qlora_studio.home import Home
from qlora_studio.planner.fit import make_plan
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES
from qlora_studio.planner.tables import imagine_machine
from qlora_studio.presets import apply_presets, find_preset, list_presets
from tests.matrix import mostly_slow

BILLIONS = {
    "SmolLM2-135M": 0.135,
    "Llama-3.2-1B": 1,
    "Qwen3-1.7B": 1.7,
    "Llama-3.2-3B": 3,
    "Phi-4-mini": 4,
    "Gemma-3-4B": 4,
    "Qwen3-4B": 4,
    "Mistral-7B-v0.3": 7,
    "Llama-3.1-8B": 8,
    "Qwen3-8B": 8,
    "Gemma-3-12B": 12,
    "Qwen3-14B": 14,
}
PROMISES = {"6gb": 4, "8gb": 8, "10gb": 8, "12gb": 12, "16gb": 14, "24gb": 14}
CASES = [(preset, name) for preset, most in PROMISES.items() for name, size in BILLIONS.items() if size <= most]
QUICK = [
    case for case in CASES if BILLIONS[case[1]] == max(BILLIONS[name] for preset, name in CASES if preset == case[0])
]
"""The largest that each preset promises."""


@pytest.mark.parametrize(("preset", "name"), mostly_slow(CASES, *QUICK))
def test_a_card_preset_fits_its_card_for_every_model_it_promises(preset, name, tmp_path):
    config = apply_presets(TrainConfig(), [find_preset("memory", preset, Home(tmp_path))])
    plan = make_plan(config, REFERENCE_SHAPES[name], imagine_machine(int(preset.removesuffix("gb"))))
    assert (plan.fits, plan.changes) == (True, ())
    assert plan.micro_batch_tokens >= config.data.max_length
    assert plan.longest_context >= config.data.max_length
    assert plan.largest_rank >= 16


def test_the_sentences_promise_what_is_tested(tmp_path):
    promised = {
        preset.name: int(re.search(r"up to (\d+) billion", preset.description)[1])
        for preset in list_presets("memory", Home(tmp_path))
        if preset.name != "cpu"
    }
    assert promised == PROMISES


def test_the_cpu_preset_fits_its_budget(tmp_path):
    config = apply_presets(TrainConfig(), [find_preset("memory", "cpu", Home(tmp_path))])
    machine = Machine(memory_bytes=16 << 30, memory_available_bytes=12 << 30, cores=4, cpu_bf16=True)
    plan = make_plan(config, REFERENCE_SHAPES["SmolLM2-135M"], machine, [200, 512])
    assert (plan.device, plan.fits, plan.optimizer) == ("cpu", True, "adamw")
    assert plan.budget_bytes <= 4 << 30


@pytest.mark.parametrize("rank", ["light", "balanced", "strong"])
def test_every_rank_preset_fits_eight_gib_with_a_four_billion_model(rank, tmp_path):
    home = Home(tmp_path)
    config = apply_presets(TrainConfig(), [find_preset("memory", "8gb", home), find_preset("rank", rank, home)])
    assert make_plan(config, REFERENCE_SHAPES["Qwen3-4B"], imagine_machine(8)).fits
