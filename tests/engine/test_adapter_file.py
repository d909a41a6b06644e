"""What an adapter's file brings, parameter by parameter, from tensors written by hand."""

import json

import pytest
import torch
from safetensors.torch import save_file

from qlora_studio.core.errors import StudioError
from qlora_studio.engine.adapter_file import AdapterFile, RowRange

Q = "base_model.model.model.layers.0.self_attn.q_proj"
HEAD, TOKENS = "base_model.model.lm_head", "base_model.model.model.embed_tokens"
BIAS = "model.layers.0.self_attn.q_proj.bias"


def numbers(*shape, first=1):
    count = torch.tensor(shape).prod().item()
    return torch.arange(first, first + count, dtype=torch.float32).reshape(shape)


@pytest.fixture
def adapter(tmp_path):
    """Opens an adapter with rank 2 and alpha 6 that has these tensors."""
    files = []

    def make(tensors):
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj"], "lora_bias": True}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        files.append(AdapterFile(tmp_path))
        return files[-1]

    yield make
    for file in files:
        file.close()


def lora(**more):
    return {f"{Q}.lora_A.weight": numbers(2, 3), f"{Q}.lora_B.weight": numbers(4, 2), **more}


def test_a_bias_of_the_second_factor_is_added_to_the_layers_own(adapter):
    bias = numbers(4, first=10)
    file = adapter(lora(**{f"{Q}.lora_B.bias": bias}))
    own = torch.tensor([0.5, 1.5, 2.5, 3.5], dtype=torch.bfloat16)
    merged = file.apply(BIAS, own)
    assert merged.dtype == torch.float32 and torch.equal(merged, own.float() + 3 * bias)
    assert torch.equal(file.apply(BIAS, own[1:3], rows=RowRange(1, 3, 4)), own[1:3].float() + 3 * bias[1:3])
    assert file.touches(BIAS) and file.unused == [f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"]


def test_without_such_a_bias_the_layers_own_stays(adapter):
    file = adapter(lora())
    own = numbers(4)
    assert file.apply(BIAS, own) is own and not file.touches(BIAS)


def test_two_parameters_are_the_same_only_where_both_are_brought_and_equal(adapter):
    file = adapter({f"{HEAD}.weight": numbers(4, 3), f"{TOKENS}.weight": numbers(4, 3)})
    assert file.brings_the_same("lm_head.weight", "model.embed_tokens.weight")
    assert not file.brings_the_same("lm_head.weight", "model.norm.weight")
    assert not file.brings_the_same("model.norm.weight", "lm_head.weight")
    other = adapter({f"{HEAD}.weight": numbers(4, 3), f"{TOKENS}.weight": numbers(4, 3, first=2)})
    assert not other.brings_the_same("lm_head.weight", "model.embed_tokens.weight")


def test_what_is_forgotten_counts_as_taken_and_changes_nothing(adapter):
    file = adapter({f"{HEAD}.weight": numbers(4, 3), f"{TOKENS}.weight": numbers(4, 3)})
    file.forget("lm_head.weight")
    assert file.unused == [f"{TOKENS}.weight"] and not file.touches("lm_head.weight")
    assert file.touches("model.embed_tokens.weight")


@pytest.mark.parametrize("leaf", ["bias", "weight"])
def test_the_trained_copy_of_a_saved_module_wins_over_a_plain_one(adapter, leaf):
    """In the order of names the plain bias comes before the trained one, the plain weight after it."""
    file = adapter({f"{HEAD}.{leaf}": numbers(4), f"{HEAD}.modules_to_save.{leaf}": numbers(4, first=7)})
    assert file.unused == [f"{HEAD}.modules_to_save.{leaf}"]
    assert torch.equal(file.apply(f"lm_head.{leaf}", torch.zeros(4)), numbers(4, first=7))
    assert file.unused == []


def test_an_adapter_for_another_size_is_refused(adapter):
    file = adapter(lora())
    file.check_fits("model.layers.0.self_attn.q_proj.weight", (4, 3), transposed=False)
    file.check_fits("model.layers.0.self_attn.q_proj.weight", (3, 4), transposed=True)
    with pytest.raises(StudioError, match=r"is \(4, 5\), and the adapter was made for \(4, 3\)"):
        file.check_fits("model.layers.0.self_attn.q_proj.weight", (4, 5), transposed=False)
