"""What dropout, DoRA, PiSSA and a choice of layers add to the bill: parameters to the byte, the peak within 5 %."""

from __future__ import annotations

import pytest
import torch

from qlora_studio.core.config import LoraSettings, OptimConfig, TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.machine import Machine
from qlora_studio.core.plan import GIB
from qlora_studio.engine import load
from qlora_studio.engine.accelerator.cpu import CpuAccelerator
from qlora_studio.engine.allocations import bytes_of, peak_of
from qlora_studio.engine.copies import write_random_model
from qlora_studio.engine.kernels.checkpointing import checkpoint_layers
from qlora_studio.engine.kernels.dropout import find_row_seeds
from qlora_studio.engine.updates import make_optimizer, trained_groups
from qlora_studio.planner.activations import step_peak
from qlora_studio.planner.fit import make_plan
from tests.matrix import mostly_slow
from tests.planner.test_activations import RANK, SMALL, one_step, settings

pytestmark = pytest.mark.usefixtures("two_threads")

MACHINE = Machine(memory_bytes=16 * GIB, memory_available_bytes=12 * GIB, cpu_bf16=True)
METHODS = {
    "dora": {"lora.use_dora": True},
    "pissa": {"lora.init": "pissa"},
    "olora": {"lora.init": "olora"},
    "two modules": {"lora.target_modules": "o_proj, down_proj"},
    "two layers": {"lora.layers": "1-"},
    "dora on one layer, lora+": {"lora.use_dora": True, "lora.layers": "2", "optim.loraplus_ratio": 16.0},
}


def load_small(family, folder, lora):
    base = load.load_base(write_random_model(SMALL[family], folder), load.Device(CpuAccelerator(), torch.bfloat16))
    return load.attach_adapter(base, lora, torch.float32, seed=0).train()


@pytest.mark.parametrize("optimizer", mostly_slow(["adamw", "adamw_8bit"], "adamw"))
@pytest.mark.parametrize("method", mostly_slow(METHODS, "dora", "dora on one layer, lora+"))
def test_adapter_gradients_and_states_are_the_bytes_allocated(method, optimizer, tmp_path):
    given = {"lora.rank": 40, "optim.optimizer": optimizer, "memory.adapter_precision": "fp32", "data.max_length": 64}
    config = TrainConfig().replace(given | METHODS[method])
    model = load_small("phi3" if method == "two modules" else "llama", tmp_path, config.lora)
    plan = make_plan(config, SMALL["phi3" if method == "two modules" else "llama"], MACHINE)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optim = TrainConfig(optim=OptimConfig(learning_rate=1e-9, loraplus_ratio=config.optim.loraplus_ratio))
    stepped = make_optimizer(trained_groups(model, optim.optim), optim, optimizer)
    stepped.step()
    states = [value for state in stepped.state.values() for value in state.values() if torch.is_tensor(value)]
    wanted = {"adapter": bytes_of(trained), "gradients": bytes_of(trained), "optimizer": bytes_of(states)}
    assert {key: plan.estimate.part_bytes(key) for key in wanted} == wanted


@pytest.mark.parametrize("layers", mostly_slow([0, 2], 2))
@pytest.mark.parametrize("family", mostly_slow(["llama", "phi3", "qwen3"], "llama"))
def test_dropout_keeps_nothing(family, layers, tmp_path):
    model = load_small(family, tmp_path, LoraSettings(rank=RANK, dropout=0.1))
    seeds = find_row_seeds(model)
    assert seeds is not None
    seeds.seeds, seeds.spans = ("a row",), ((0, 512),)
    checkpoint_layers(model, layers)
    plan = settings(micro_batch_tokens=512, trained_tokens=511, checkpointed_layers=layers, dropout=True)
    assert step_peak(SMALL[family], plan).total == pytest.approx(peak_of(one_step(model, 512)), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("family", mostly_slow(["llama", "qwen2", "qwen3"], "qwen3"))
def test_dora_keeps_its_outputs(family, layers, tmp_path):
    model = load_small(family, tmp_path, LoraSettings(rank=RANK, use_dora=True))
    checkpoint_layers(model, layers)
    plan = settings(micro_batch_tokens=512, trained_tokens=511, checkpointed_layers=layers, dora=True)
    assert step_peak(SMALL[family], plan).total == pytest.approx(peak_of(one_step(model, 512)), rel=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora.target_modules": "q_proj, query"}, "llama has no linear layer 'query'"),
        ({"lora.layers": "0-3"}, "'0-3' is no range of the layers 0 to 2"),
        ({"lora.layers": "1-0"}, "'1-0' is no range of the layers 0 to 2"),
        ({"lora.layers": "two"}, "'two' is no range of the layers 0 to 2"),
    ],
)
def test_layers_that_the_model_does_not_have_are_refused_with_those_it_has(changes, message):
    with pytest.raises(StudioError, match=message):
        make_plan(TrainConfig().replace(changes), SMALL["llama"], MACHINE)
