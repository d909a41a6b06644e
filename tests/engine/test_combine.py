"""Adapters combined with weights change a model as PEFT's own weighted adapter does."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from qlora_studio.core.errors import StudioError
from qlora_studio.engine.adapter_file import CONFIG, WEIGHTS, AdapterFile
from qlora_studio.engine.combine import combine
from tests.engine.gguf_file.small_models import small_adapter, small_base

IDS = torch.arange(300, 390).unsqueeze(0)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return small_base("llama", tmp_path_factory.mktemp("base"), num_hidden_layers=2)


def adapters(base, place, kinds):
    """Adapters of these kinds, no two the same."""
    made = []
    for number, changes in enumerate(kinds):
        folder = small_adapter(base, place / f"adapter-{number}", **changes)
        file = AdapterFile(folder)
        torch.manual_seed(10 + number)
        values = {name: torch.randn_like(file.file.read(name)) * 0.1 for name in file.file.header}
        file.close()
        save_file(values, folder / WEIGHTS, metadata={"format": "pt"})
        made.append(folder)
    return made


def pefts_own(base, folders, weights, how):
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folders[0], adapter_name="0"
    )
    for number, folder in enumerate(folders[1:], 1):
        model.load_adapter(folder, adapter_name=str(number))
    model.add_weighted_adapter([str(n) for n in range(len(folders))], weights, "sum", combination_type=how)
    model.set_adapter("sum")
    return model.eval()


def ours(base, folders, weights, how, place):
    made = combine([(AdapterFile(folder), weight) for folder, weight in zip(folders, weights, strict=True)], how)
    place.mkdir()
    (place / CONFIG).write_text(json.dumps(made.config))
    save_file(made.tensors, place / WEIGHTS, metadata={"format": "pt"})
    return PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), place
    ).eval(), made


ATTENTION = {"target_modules": ["q_proj", "v_proj"]}
MLP = {"target_modules": ["down_proj", "q_proj"]}


@pytest.mark.parametrize(
    ("how", "kinds", "weights"),
    [
        ("cat", [{}, {}], [0.7, 0.3]),
        ("linear", [{}, {}], [0.7, 0.3]),
        ("linear", [{}, {}, {}], [1.0, -0.5, 0.25]),
        ("cat", [{"r": 2}, {"r": 8, "lora_alpha": 3}], [1.5, -1.0]),
        ("cat", [{}, {"use_rslora": True}], [1.0, 1.0]),
        ("linear", [{}, {"use_rslora": True, "lora_alpha": 5}], [0.5, 1.0]),
        ("cat", [{}, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 30}}], [1.0, 2.0]),
        ("cat", [ATTENTION, MLP], [1.0, 2.0]),
        ("linear", [ATTENTION, MLP], [1.0, 2.0]),
    ],
)
@torch.no_grad()
def test_it_equals_pefts_weighted_adapter(how, kinds, weights, base, tmp_path):
    folders = adapters(base, tmp_path, kinds)
    expected = pefts_own(base, folders, weights, how)(IDS).logits
    model, _ = ours(base, folders, weights, how, tmp_path / "ours")
    assert (model(IDS).logits - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)(IDS).logits
    assert (expected - plain).abs().max() > 0.1, "the adapters do nothing"


@pytest.mark.parametrize("kinds", [[{}, {"r": 2}], [{"use_rslora": True}, {"use_rslora": True}]])
def test_side_by_side_is_the_weighted_sum_of_the_changes(kinds, base, tmp_path):
    """Also where the first scales by the root of its rank, which PEFT gives its sum a second time."""
    folders = adapters(base, tmp_path, kinds)
    _, made = ours(base, folders, [0.5, -2.0], "cat", tmp_path / "ours")
    module, files = "model.layers.0.mlp.up_proj", [AdapterFile(folder) for folder in folders]
    expected = sum(
        weight * scale * b @ a
        for weight, (a, b, scale) in zip([0.5, -2.0], (f.factors(module) for f in files), strict=True)
    )
    a, b = (made.tensors[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
    assert torch.allclose(b @ a, expected, atol=1e-6) and made.config["r"] == made.config["lora_alpha"] == a.shape[0]


def test_other_ranks_and_more_than_lora_are_refused(base, tmp_path):
    different = [(AdapterFile(folder), 1.0) for folder in adapters(base, tmp_path, [{"r": 2}, {"r": 4}])]
    with pytest.raises(StudioError, match=r"different ranks cannot be added: .* has 2, 4"):
        combine(different, "linear")
    dora = AdapterFile(small_adapter(base, tmp_path / "dora", use_dora=True))
    with pytest.raises(StudioError, match="Only plain LoRA adapters can be combined"):
        combine([different[0], (dora, 1.0)], "cat")


@pytest.mark.parametrize("turned", [False, True])
def test_the_new_adapter_s_settings_are_whole_and_lesser_ranks_are_filled_with_nothing(tmp_path, turned):
    def adapter(name, modules, fan_in_fan_out):
        folder = tmp_path / name
        folder.mkdir()
        values = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "fan_in_fan_out": fan_in_fan_out}
        (folder / CONFIG).write_text(json.dumps(values))
        save_file({
            f"base_model.model.{module}.lora_{side}.weight": torch.ones(1, 3) if side == "A" else torch.ones(2, 1)
            for module in modules for side in "AB"
        }, folder / WEIGHTS)  # fmt: skip
        return AdapterFile(folder)

    made = combine([(adapter("one", ["a", "b"], turned), 0.5), (adapter("two", ["b"], not turned), -1.0)], "cat")
    assert made.config == {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "inference_mode": True, "r": 2, "lora_alpha": 2,
        "lora_dropout": 0.0, "bias": "none", "target_modules": ["a", "b"], "fan_in_fan_out": turned,
    }  # fmt: skip
    assert {name.removeprefix("base_model.model."): value.tolist() for name, value in made.tensors.items()} == {
        "a.lora_A.weight": [[1, 1, 1], [0, 0, 0]], "a.lora_B.weight": [[1, 0], [1, 0]],
        "b.lora_A.weight": [[1, 1, 1], [-2, -2, -2]], "b.lora_B.weight": [[1, 1], [1, 1]],
    }  # fmt: skip
