"""Dry runs: they meet the formulas where there are some, and the real engine where there are none."""

import json
from itertools import product

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from qlora_studio.core.bases import BaseRef
from qlora_studio.core.config import LoraSettings
from qlora_studio.core.errors import StudioError
from qlora_studio.core.example import Example
from qlora_studio.core.plan import PlanSettings
from qlora_studio.engine import dry_run, load
from qlora_studio.engine.accelerator.cpu import CpuAccelerator
from qlora_studio.engine.allocations import peak_of
from qlora_studio.engine.copies import config_for
from qlora_studio.engine.dry_run import measure, measure_folder
from qlora_studio.engine.forward import LossFunction
from qlora_studio.engine.kernels.checkpointing import checkpoint_layers
from qlora_studio.home import Home
from qlora_studio.planner.activations import step_peak
from qlora_studio.planner.bases import resolve
from qlora_studio.planner.estimate import nf4_bytes, unquantised_bytes
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES
from qlora_studio.planner.shape import read_shape
from tests.engine.architectures import write_model

SMALL = {
    "vocab_size": 512,
    "max_position_embeddings": 4096,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 896,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Llama-3.1-8B", "Gemma-3-4B"])
def test_the_formulas_agree_with_a_dry_run_of_the_whole_size(name):
    shape = REFERENCE_SHAPES[name]
    measured = shape.model_copy(update={"measured": measure(config_for(shape), ["bf16"])})
    assert nf4_bytes(measured) == nf4_bytes(shape)
    assert unquantised_bytes(measured, PlanSettings()) == unquantised_bytes(shape, PlanSettings())
    for device, tokens, tiled in product(("cuda", "cpu"), (512, 4096), (False, True)):
        for twice in (0, shape.layers // 2, shape.layers):
            for rank in (16, 64):
                plan = PlanSettings(
                    device=device, micro_batch_tokens=tokens, row_tokens=256, checkpointed_layers=twice, rank=rank,
                    packed=True, tiled_mlp=tiled,
                )  # fmt: skip
                ratio = step_peak(measured, plan).total / step_peak(shape, plan).total
                assert ratio == pytest.approx(1, rel=0.02), (device, tokens, tiled, twice, rank)


@pytest.mark.slow
def test_an_unknown_family_is_measured_as_the_engine_will_take_it(tmp_path):
    folder = tmp_path / "olmo2"
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("olmo2", **SMALL), dtype=torch.bfloat16).save_pretrained(
        folder
    )
    unmeasured = read_shape(folder, "olmo2")
    shape = resolve(BaseRef(str(folder)), Home(tmp_path / "home"), measure_folder, lambda message: None).shape
    assert (shape.exact, unmeasured.measured, shape.measured is not None) == (False, None, True)

    model = load.load_base(folder, load.Device(CpuAccelerator(), torch.bfloat16))
    model = load.attach_adapter(model, LoraSettings(rank=8), torch.float32, seed=0).train()
    for twice, rows in product((0, 2), (1, 4)):
        ratio = planned_and_real(shape, model, rows, twice)
        assert ratio == pytest.approx(1, rel=0.05), (twice, rows)


def planned_and_real(shape, model, rows, twice):
    """The plan for 1024 tokens in so many rows, laid out as the engine lays them out, over the peak that they have."""
    loss_function, length = LossFunction(model), 1024 // rows
    assert (loss_function.padded_because is None) == (shape.measured.padded_because is None)
    row = Example(tuple(number % 500 for number in range(length)), ((0, length),))
    batch = loss_function.layout.collate([row] * rows, range(rows))
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    checkpoint_layers(model, twice)
    real = peak_of(lambda: (loss_function.row_losses(batch).sum() / 1024).backward())
    plan = PlanSettings(
        device="cpu", rank=8, micro_batch_tokens=1024, row_tokens=length, trained_tokens=1024 - rows,
        checkpointed_layers=twice, packed=loss_function.layout.packed,
    )  # fmt: skip
    return step_peak(shape, plan).total / real


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (SMALL | {"model_type": "not_a_family"}, "This architecture cannot be measured: ValueError: "),
        (SMALL | {"model_type": "olmo2", "num_key_value_heads": 3}, "This architecture cannot be measured: "),
    ],
    ids=["an unknown family", "sizes that do not match"],
)
def test_a_dry_run_that_fails_says_why(tmp_path, values, message):
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(StudioError) as caught:
        measure_folder(tmp_path)
    assert caught.value.problems[0].message.startswith(message)
    assert caught.value.problems[0].where == str(tmp_path / "config.json")


def test_a_model_without_layers_that_can_be_checkpointed_is_refused(monkeypatch):
    monkeypatch.setattr(dry_run, "decoder_layers", lambda model: [])
    with pytest.raises(StudioError) as caught:
        measure(AutoConfig.for_model("llama", **SMALL), ["bf16"])
    assert "A llama model has no layers that this version can adapt." in caught.value.message


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "falcon", "gpt2", "gemma2", "gptj"])
def test_odd_architectures_take_no_more_than_is_planned_and_not_much_less(family, tmp_path):
    """Mixtures, kinds of their own, transposed layers, attention without a fused kernel; one row and several."""
    folder = write_model(family, tmp_path)
    shape = read_shape(folder, family).model_copy(update={"measured": measure_folder(folder)})
    model = load.load_base(folder, load.Device(CpuAccelerator(), torch.bfloat16))
    model = load.attach_adapter(model, LoraSettings(rank=8), torch.float32, seed=0).train()
    for rows in (1, 4):
        for layers in (0, 2, 4):
            assert 0.98 <= planned_and_real(shape, model, rows, layers) <= 1.4, (rows, layers)
